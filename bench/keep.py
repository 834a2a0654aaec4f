#!/usr/bin/env python3
"""Makes of benchmark output what is worth keeping under bench/results: figures, commit, GPU; no host names, no paths.

usage: keep.py "what was run" OUT.json RESULT.json ...     results: of a benchmark's --benchmark_out=RESULT.json"""
import json
import pathlib
import re
import subprocess
import sys

OF_THE_HOST = ("host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "caches", "load_avg",
               "library_build_type", "aslr_enabled", "library_version", "json_schema_version", "date")
OF_THE_LIBRARY = ("name", "family_index", "per_family_instance_index", "run_name", "run_type", "repetitions",
                  "repetition_index", "threads", "iterations", "real_time", "cpu_time", "time_unit")


def row(run):
    figures = {key: float(f"{value:.5g}") if isinstance(value, float) else value
               for key, value in run.items() if key not in OF_THE_LIBRARY}
    return {"name": re.sub(r"/iterations:.*", "", run["name"]), **figures}


def main():
    if len(sys.argv) < 4:
        print(__doc__)
        return 2
    what, out, *paths = sys.argv[1:]
    results = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=pathlib.Path(__file__).parent,
                            capture_output=True, text=True, check=False).stdout.strip()
    context = results[0]["context"]
    head = {"what": what, "date": context["date"][:10], "commit": commit,
            **{key: value for key, value in context.items() if key not in OF_THE_HOST}}
    rows = [json.dumps(row(run)) for result in results for run in result["benchmarks"]]
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    text = "\n".join(["{", *lines, ' "rows": [', ",\n".join("  " + line for line in rows), " ]", "}"])
    pathlib.Path(out).write_text(text + "\n")
    print(f"{out}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
