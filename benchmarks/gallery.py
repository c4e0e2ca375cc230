"""A search in a gallery of a million people, beside reading its embeddings once and beside one BLAS product of that size.

The exact search (`backend="jax"`) of one query and of 32 is timed in turns with the largest of all numbers, by NumPy in a thread
per core, which memory bounds, and with NumPy's product of the embeddings and 32 queries, which is BLAS. Then binary codes
(`backend="faiss"`) of the same embeddings, with what they find: of queries at a cosine of 0.5 to one person, as photographs of
one person are, how often that person comes first, and how many of the ten nearest people are found. The embeddings are
independent and uniform on the sphere, the worst case for any index.
Run with `python -m benchmarks.gallery`; a million people of 512 numbers take 5 GB of memory and two minutes. `--indices`
builds what else faiss and usearch (where installed) have, for 100,000 such people, and compares that with the codes.
"""

import argparse
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks import common
from jaxface import inference
from jaxface.inference.gallery_rows import CodedRows

K, COSINE, QUERIES = 10, 0.5, 32


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _near(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors at a cosine of `COSINE` to `rows`, in random directions."""
    others = rng.standard_normal(rows.shape, np.float32)
    others = _unit(others - (others * rows).sum(1, keepdims=True) * rows)
    return (COSINE * rows + np.sqrt(1 - COSINE**2) * others).astype(np.float32)


def _filled(people: int, dim: int, rng: np.random.Generator) -> inference.Gallery:
    gallery = inference.Gallery("benchmark", dim)
    for start in range(0, people, 65536):
        names = [f"person {i}" for i in range(start, min(start + 65536, people))]
        gallery.add(names, rng.standard_normal((len(names), dim), np.float32))
    return gallery


def measure(people: int, dim: int, repeats: int) -> list[dict]:
    """Rows of results: the exact search of 1 and of 32 queries, and the coded one."""
    rng = np.random.default_rng(0)
    gallery = _filled(people, dim, rng)
    blocks = list(gallery._rows.blocks())
    starts = np.cumsum([0, *map(len, blocks[:-1])])
    wanted = rng.integers(0, people, QUERIES)
    which = np.searchsorted(starts, wanted, side="right") - 1
    rows = np.stack([blocks[b][i] for b, i in zip(which, wanted - starts[which], strict=True)])
    queries = _near(rows, rng)

    workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    pieces = [piece for block in blocks for piece in np.array_split(block, 8)]
    product = np.empty((65536, QUERIES), np.float32)

    def read():
        return max(workers.map(np.max, pieces))

    def blas():
        for block in blocks:
            np.matmul(block, queries.T, out=product[: len(block)])

    one, all_queries = queries[:1], queries
    calls = {
        "read once": read,
        "BLAS product": blas,
        "one query": lambda: gallery.search(one, K),
        "32 queries": lambda: gallery.search(all_queries, K),
    }
    times = common.in_turns(calls, repeats=repeats, warmup=1, budget=60)
    exact = gallery.search(queries, K)
    seconds = {name: common.summary(values) for name, values in times.items()}
    median = {name: row["seconds_median"] for name, row in seconds.items()}
    shape = {"people": people, "dim": dim, "k": K}
    results = [
        {
            **shape,
            "what": "exact",
            "queries": queries_count,
            "seconds": seconds,
            "peer": peer,
            "times_the_peer": ratio,
        }
        for queries_count, peer, ratio in (
            (1, "read once", median["one query"] / median["read once"]),
            (QUERIES, "BLAS product", median["32 queries"] / median["BLAS product"]),
        )
    ]
    coded = inference.Gallery("benchmark", dim, backend="faiss")
    built = common.seconds(lambda: _code(coded, gallery, blocks), repeats=1, warmup=0)
    for shortlist in (64, 256, 1024):
        coded._rows = _with_shortlist(coded._rows, shortlist)
        times = common.in_turns(
            {"one query": lambda: coded.search(one, K), "32 queries": lambda: coded.search(all_queries, K)},
            repeats=repeats,
            warmup=1,
            budget=20,
        )
        matches = coded.search(queries, K)
        same = [len(set(a) & set(b)) / K for a, b in zip(exact.names, matches.names, strict=True)]
        results.append(
            {
                **shape,
                "what": "codes",
                "shortlist": shortlist,
                "seconds_to_code": float(built[0]),
                "bytes_of_codes": people * coded._rows._bits // 8,
                "seconds": {name: common.summary(values) for name, values in times.items()},
                "person_first": float(
                    np.mean([a == f"person {i}" for a, i in zip(matches.identities, wanted, strict=True)])
                ),
                "recall_of_ten": float(np.mean(same)),
            }
        )
    return results


def measure_indices(people: int, dim: int) -> list[dict]:
    """Rows of results: seconds to build an index and to search it for 256 people, and how often the person comes first."""
    rng = np.random.default_rng(0)
    rows = _unit(rng.standard_normal((people, dim), np.float32))
    wanted = rng.integers(0, people, 256)
    queries = _near(rows[wanted], rng)
    results = []

    def add(name, count, build, search):
        """`build(rows)`, then `search(index, queries)`, for the first `count` people."""
        asked = wanted < count
        begun = time.perf_counter()
        index = build(rows[:count])
        built = time.perf_counter()
        ids = search(index, queries[asked])
        ended = time.perf_counter()
        results.append(
            {
                "what": "index",
                "name": name,
                "people": count,
                "dim": dim,
                "seconds_to_build": built - begun,
                "seconds_a_query": (ended - built) / asked.sum(),
                "person_first": float(np.mean(np.asarray(ids)[:, 0] == wanted[asked])),
            }
        )

    def coded(rows):
        index = CodedRows(dim, shortlist=100)
        index.append_mapped(rows)
        return index

    add("jaxface, codes, shortlist of 100", people, coded, lambda index, q: index.nearest(q, K)[1])
    faiss = importlib.import_module("faiss")

    def trained(name):
        def build(rows):
            index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
            index.train(rows[: len(rows) * 2 // 5])
            index.add(rows)
            if hasattr(index, "nprobe"):
                index.nprobe = 64
            return index

        return build

    cells = max(people // 100, 4)
    add(
        f"faiss, IVF{cells},Flat, 64 cells",
        people,
        trained(f"IVF{cells},Flat"),
        lambda index, q: index.search(q, K)[1],
    )
    add("faiss, SQ8", people, trained("SQ8"), lambda index, q: index.search(q, K)[1])
    if importlib.util.find_spec("usearch") is not None:
        usearch = importlib.import_module("usearch.index")

        def graph(rows):
            index = usearch.Index(ndim=dim, metric="ip", dtype="f16", expansion_add=128, expansion_search=128)
            index.add(np.arange(len(rows)), rows)
            return index

        add("usearch, HNSW, half precision", people // 5, graph, lambda index, q: index.search(q, K).keys)
    return results


def _code(coded: inference.Gallery, gallery: inference.Gallery, blocks: list[np.ndarray]) -> None:
    """Fills a gallery of codes with the people of another, whose embeddings it shares."""
    for block in blocks:
        coded._rows.append_mapped(block)
    coded._names, coded._people = gallery._names, gallery._people


def _with_shortlist(rows: CodedRows, shortlist: int) -> CodedRows:
    rows._shortlist = shortlist
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--indices", action="store_true", help="compare with other indices, of a tenth of the people"
    )
    parser.add_argument(
        "--folder", type=common.folder_argument, help="where to write, instead of results/<device>"
    )
    arguments = parser.parse_args()
    rows = measure(arguments.people, arguments.dim, arguments.repeats)
    if arguments.indices:
        rows += measure_indices(arguments.people // 10, arguments.dim)
    for row in rows:
        if row["what"] == "exact":
            name = "one query" if row["queries"] == 1 else "32 queries"
            ours, peer = (row["seconds"][key]["seconds_median"] * 1e3 for key in (name, row["peer"]))
            print(
                f"exact, {name}: {ours:.0f} ms, {row['peer']} {peer:.0f} ms, {row['times_the_peer']:.2f} times that"
            )
        elif row["what"] == "index":
            print(
                f"{row['name']}, {row['people']} people: built in {row['seconds_to_build']:.1f} s, "
                f"{row['seconds_a_query'] * 1e3:.1f} ms a query, person first {row['person_first']:.3f}"
            )
        else:
            one, many = (row["seconds"][key]["seconds_median"] * 1e3 for key in ("one query", "32 queries"))
            print(
                f"codes, shortlist {row['shortlist']}: one query {one:.0f} ms, 32 queries {many:.0f} ms, "
                f"person first {row['person_first']:.3f}, of the ten nearest {row['recall_of_ten']:.2f}"
            )
    print(common.write("gallery", rows, packages=("faiss-cpu", "usearch"), folder=arguments.folder))


if __name__ == "__main__":
    main()
