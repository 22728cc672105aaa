"""The real lmms-eval on a compressed model; where it is not installed, vtc's own harness on the same task.

    python examples/with_lmms_eval.py           # lmms-eval: pip install lmms-eval, in an environment of its own

vtc replaces lmms-eval's wrappers under their own names as soon as it is installed beside it, so `compress=SPEC` among
the model's arguments is all. The task is `lmms_task/`, a YAML file in lmms-eval's form that both read; its questions
are of the bundled benchmark, written to a folder first.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from vtc.eval import embedded

TASK, SPEC, QUESTIONS = Path(__file__).resolve().parent / "lmms_task", "divprune:keep=0.25", 6

# for a real checkpoint, in the place of the line behind this comment, and "gqa" in the place of "bundled" below:
#   CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
CHECKPOINT = embedded.path()


def write_questions(folder: Path) -> None:
    """What the task asks: pictures, and a line for each question."""
    folder.mkdir()
    rows = []
    for number, sample in enumerate(embedded.benchmark(QUESTIONS)):
        sample.image.save(folder / f"{number}.png")
        rows.append({"image": f"{folder.name}/{number}.png", "question": sample.question, "answer": sample.answer})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


with tempfile.TemporaryDirectory() as home:
    write_questions(Path(home, "questions"))
    shared = ["--tasks", "bundled", "--include_path", TASK, "--device", "cpu"]
    if find_spec("lmms_eval"):
        arguments = f"pretrained={CHECKPOINT},dtype=float32,compress={SPEC}"
        command = ["lmms_eval", "--model", "llava_hf", "--model_args", arguments, *shared, "--output_path", home]
    else:
        print("lmms-eval is not installed here: vtc's own harness on the same task")
        command = ["vtc.eval", "--model", CHECKPOINT, "--methods", "none", "--compress", SPEC, *shared]
        command += ["--dtype", "float32", "--output", f"{home}/run"]
    subprocess.run([sys.executable, "-m", *map(str, command)], cwd=home, check=True)
    (file,) = Path(home).rglob("*results.json")  # lmms-eval ends with 0 after errors as well
    results = json.loads(file.read_text())

if "throughput" in results:
    right, cost = results["results"]["bundled"]["exact_match,none"], results["throughput"]
    kept, given = cost["avg_kept_tokens"], cost["avg_visual_tokens"]
else:
    row = next(row for row in results["settings"] if row["setting"] == SPEC)
    right, kept, given = row["overall"]["accuracy"], row["kept_tokens"], row["visual_tokens"]
print(f"{SPEC}: {round(QUESTIONS * right)} of {QUESTIONS} right, with {kept:.0f} of {given:.0f} visual tokens")
