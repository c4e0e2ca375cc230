"""One module per command of `jaxface`: its docstring is the help, `main(arguments)` runs it. None imports JAX at its top."""
