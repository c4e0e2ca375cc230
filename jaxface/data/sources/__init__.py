"""Where records come from: files, formats and the data sets that packages bring."""
