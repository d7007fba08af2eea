"""The long fuzzing of all readers: `python tests/fuzz/run.py --inputs 10000`; `--reader ply` for one of them.

Every reader gets its broken files in a process of its own, with bounded memory: a crash or a hang of it is a failure
like others. The files of failures are kept. Exits with 1 where there are any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HANG = 300  # seconds that so many inputs may take, on a busy machine
_TOGETHER = 50
MEMORY = 1 << 30  # bytes more than before


def work(reader: str, start: int, count: int, seed: int, out: Path) -> None:
    """The inputs ``start`` to ``count`` of a reader; where it got to is in ``state.json`` all the time."""
    import resource

    from fuzz_engine import Campaign, one_hdf5_child
    from fuzz_targets import TARGETS

    state_file, failures = out / "state.json", out / "failures"
    state: dict[str, Any] = json.loads(state_file.read_text()) if start else {}
    counts, whys = Counter(state.get("counts", {})), Counter(state.get("whys", {}))
    campaign = Campaign(TARGETS[reader], out / "input", seed + start, guided=True)
    with one_hdf5_child():
        for outcome in campaign.check_seeds():
            if outcome.kind == "failed":
                raise SystemExit(f"{reader}: a good file fails: {outcome.why}")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(start, count):
            memory = max(state.get("memory", 0), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
            state = {"number": number, "counts": counts, "whys": whys, "slowest": state.get("slowest", 0)}
            state |= {"memory": memory, "steps": len(campaign.coverage.known if campaign.coverage else ())}
            state_file.write_text(json.dumps(state))
            if number % _TOGETHER == 0 or number == start:
                faulthandler.dump_traceback_later(HANG, exit=True)
            outcome = campaign.step()
            state["slowest"] = max(state["slowest"], outcome.seconds)
            counts[outcome.kind] += 1
            guarded = "the HDF5 library" in outcome.why
            counts["stopped"] += guarded
            if outcome.kind == "failed":
                whys[outcome.why.replace(str(out), "")[:120]] += 1
            if (outcome.kind == "failed" and counts["failed"] <= 200) or (guarded and counts["stopped"] <= 50):
                shutil.copytree(campaign.folder, failures / f"{outcome.kind}-{number}", dirs_exist_ok=True)
                (failures / f"{outcome.kind}-{number}.txt").write_text(outcome.why)
        faulthandler.cancel_dump_traceback_later()
        state |= {"number": count, "counts": counts, "whys": whys}
        state_file.write_text(json.dumps(state))


def supervise(reader: str, count: int, seed: int, out: Path) -> dict[str, Any]:
    """Run a reader's worker, and start it again after the input that ended it."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "failures").mkdir(parents=True)
    start, began = 0, time.time()
    while True:
        command = [sys.executable, __file__, "--work", reader, str(start), str(count), str(seed), str(out)]
        with open(out / "errors.txt", "wb") as errors:
            code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=errors, check=False).returncode
        if not (out / "state.json").is_file():
            raise SystemExit((out / "errors.txt").read_text())
        state = json.loads((out / "state.json").read_text())
        if code == 0:
            return {**state, "seconds": time.time() - began}
        number = state["number"]
        shutil.copytree(out / "input", out / "failures" / f"ended-{number}", dirs_exist_ok=True)
        shutil.copy(out / "errors.txt", out / "failures" / f"ended-{number}.txt")
        lines = (out / "errors.txt").read_text(errors="replace").splitlines() or [""]
        said = lines[0] if "Timeout" in lines[0] or "Fatal" in lines[0] else lines[-1]
        why = f"the process ended with {code}: {said}"[:120]
        state["counts"]["failed"] = state["counts"].get("failed", 0) + 1
        state["whys"][why] = state["whys"].get(why, 0) + 1
        start = number + 1
        (out / "state.json").write_text(json.dumps(state))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader (default: %(default)s)")
    parser.add_argument("--reader", action="append", help="this one only; may be given more than once")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for the failures (default: %(default)s)")
    args = parser.parse_args()

    from fuzz_targets import TARGETS

    failed = 0
    head = ("reader", "inputs", "read", "refused", "failures", "HDF5 stopped", "steps", "slowest s", "memory MB", "s")
    print(("{:18}" + "{:>13}" * 9).format(*head), flush=True)
    for reader in args.reader or TARGETS:
        if reader not in TARGETS:
            parser.error(f"no reader {reader}: there are {', '.join(TARGETS)}")
        state = supervise(reader, args.inputs, args.seed, args.out.absolute() / reader)
        counts = state["counts"]
        cells = [reader, state["number"], *(counts.get(kind, 0) for kind in ("read", "refused", "failed", "stopped"))]
        cells += [state["steps"], f"{state['slowest']:.2f}", state["memory"], f"{state['seconds']:.0f}"]
        print(("{:18}" + "{:>13}" * 9).format(*cells), flush=True)
        for why, times in sorted(state["whys"].items(), key=lambda item: -item[1]):
            print(f"    {times} x {why}", flush=True)
        failed += counts.get("failed", 0)
    print(f"{failed} failures" + (f"; their files are in {args.out}" if failed else ""))
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("EWA3D_CACHE", os.devnull)
    if sys.argv[1:2] == ["--work"]:
        _, _, reader, start, count, seed, out = sys.argv
        work(reader, int(start), int(count), int(seed), Path(out))
    else:
        sys.exit(main())
