"""Plants faults in a copy of the project, one at a time, and says which tests notice: `python tests/mutants.py`.

Each fault is a line that was replaced. What `make test` chooses of the full products has to notice every fault that the
full products notice: a fault that is missed is tried on all of them (`--all`) as well. `make mutants` runs it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from circles import ROOT

#: Where the packages of an installation lie in a checkout.
LINKS = {"adapters": "adapters", "cuda": "cuda/kernels", "demo": "demo", "eval": "eval"}
#: What is run: tests of one thing first, the matrix last, since it takes longest.
FILES = (
    "test_prune_decode.py", "test_generate.py", "test_prune_turns.py", "test_trace.py", "test_lazyllm.py",
    "test_sparsevlm.py", "test_spatten.py", "test_holitom.py", "test_holitom_inner.py", "test_todre.py",
    "test_token_skip.py", "test_refusals.py", "test_tower_scores.py", "test_per_frame.py", "test_video_methods.py",
    "test_golden.py", "test_reducing.py", "test_selectors.py", "test_methods.py", "test_video_families.py",
    "test_families.py", "test_smolvlm.py", "test_composition.py", "test_ssm.py", "test_llava_package.py",
    "test_contract.py",
)  # fmt: skip


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: what it breaks.
        file: in which file.
        old, new: the text that is replaced, once.
    """

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    # the seam
    Mutant(
        "packed positions keep their gaps", "vtc/seam/segments.py", "(first + rank).clamp_min(0)", "cut.take(positions)"
    ),
    Mutant(
        "packed positions do not lag in later calls",
        "vtc/seam/segments.py",
        "shift=before.shift + lag",
        "shift=before.shift",
    ),
    Mutant(
        "positions of decode steps ignore what was removed",
        "vtc/seam/segments.py",
        "last + 1 - (first + count)",
        "delta",
    ),
    Mutant(
        "what is predicted next comes from the wrong place",
        "vtc/ops/cut.py",
        "(alive | before_next) & (last >= 0)",
        "alive & (last >= 0)",
    ),
    Mutant(
        "rows are not right-aligned",
        "vtc/seam/forward.py",
        "if self._selections or not right_aligned:",
        "if self._selections:",
    ),
    Mutant(
        "padding of the survivors is forgotten",
        "vtc/seam/conversation.py",
        "if valid is not None or segment.cut.padded or more",
        "if valid is not None or more",
    ),
    Mutant(
        "beams do not reorder the conversation", "vtc/calls/cache.py", "        self._vtc.choose_rows(beam_idx)\n", ""
    ),
    Mutant("cropping forgets too little", "vtc/seam/conversation.py", "        self.slots -= count\n", ""),
    Mutant(
        "a masked image is not refused",
        "vtc/seam/checks/call.py",
        "if not host_mask[image.row, image.positions].all():",
        "if False:",
    ),
    Mutant(
        "extra arguments per token are not cut",
        "vtc/seam/forward.py",
        "            self._cut_extras(call, cut, visual, sum(visual_counts))\n",
        "",
    ),
    Mutant(
        "extra arguments are not cut between layers",
        "vtc/seam/layers.py",
        "        self._shorten_extras(cut, before)\n",
        "",
    ),
    Mutant(
        "rotary tables keep the old positions",
        "vtc/seam/cutting/arguments.py",
        "if positions is None or not self.composition.packs_inside:",
        "if True:",
    ),
    Mutant(
        "M-RoPE offsets of two conversations mix",
        "vtc/model/offsets.py",
        "        set_rope_offset(self.composite, value)\n        return value",
        "        return value",
    ),
    Mutant(
        "moved tokens are not followed",
        "vtc/seam/layers.py",
        "if decision is not None and decision.source is not None and",
        "if False and",
    ),
    Mutant("heads of an earlier turn are forgotten", "vtc/seam/layers.py", "dict(conversation.heads)", "{}"),
    Mutant(
        "tokens that skipped a layer stay away", "vtc/seam/layers.py", "cut.put(before, first_of(output))", "before"
    ),
    Mutant(
        "no token is revived",
        "vtc/seam/cutting/recall.py",
        "self.selected.gather(1, waiting.slot) & waiting.valid",
        "torch.zeros_like(waiting.valid)",
    ),
    Mutant(
        "registries are not given back",
        "vtc/calls/interface.py",
        "registry.__class__ = type(registry).__base__",
        "pass",
    ),
    Mutant(
        "a prune's later stage counts from what is left",
        "vtc/seam/layers.py",
        "reached = self._reached.setdefault(id(prune), left)",
        "reached = left",
    ),
    Mutant(
        "an opened layer stays causal",
        "vtc/seam/cutting/arguments.py",
        "if layer in self.composition.open_layers and self.has_images:",
        "if False:",
    ),
    # the tower
    Mutant(
        "merged rows are not written to the residual stream",
        "vtc/tower/hooks.py",
        "        run.move.write(args[0])  # the block's residual stream\n",
        "",
    ),
    Mutant(
        "padding of ragged sequences is attended to",
        "vtc/tower/run.py",
        "self.bias = bias.masked_fill(~self.layout.valid, _NOWHERE)",
        "self.bias = bias",
    ),
    Mutant(
        "window boundaries keep their old places",
        "vtc/tower/run.py",
        "ahead[value.long()].unique_consecutive()",
        "value.clamp(max=int(ahead[-1])).unique_consecutive()",
    ),
    Mutant(
        "sizes of merged units are forgotten",
        "vtc/tower/sequences.py",
        "        self.sizes = _sizes(self.sizes, reduction, member)\n",
        "        self.sizes = self.sizes[kept]\n",
    ),
    # families
    Mutant(
        "windows of Qwen2.5-VL are taken for raster order",
        "adapters/qwen_vl.py",
        "rows[torch.argsort(self._window_index(features)).cpu()]",
        "rows",
    ),
    Mutant(
        "the CLS row is taken for a patch",
        "adapters/generic.py",
        "            values = values[:, 1:]\n        flat",
        "            values = values[:, :-1]\n        flat",
    ),
    Mutant(
        "tiles of an image count apart",
        "adapters/internvl.py",
        "image_is_run: ClassVar[bool] = True",
        "image_is_run: ClassVar[bool] = False",
    ),
    Mutant(
        "pictures with nothing between them are one",
        "adapters/smolvlm.py",
        "between.count(mark) != 1 or",
        "between.count(mark) < 1 or",
    ),
    Mutant(
        "square cells are read row by row",
        "adapters/cells.py",
        "rows.view(len(rows), side // edge, edge, side // edge, edge).transpose(2, 3)",
        "rows",
    ),
    # methods
    Mutant(
        "of equal scores the last wins",
        "vtc/method/reduction.py",
        "return scores.argsort(dim=-1, descending=True, stable=True)[",
        "return scores.argsort(dim=-1, stable=True).flip(-1)[",
    ),
    Mutant("padding is ranked among visual tokens", "vtc/method/prune.py", '.masked_fill(~visual, float("-inf"))', ""),
    Mutant(
        "static tokens stand behind the others",
        "vtc/selectors/video/holitom.py",
        " + ~static[kept]",
        " + static[kept].long()",
    ),
    Mutant(
        "of equally good cuts the longer last segment wins",
        "vtc/selectors/video/holitom_segments.py",
        "int(spared.argmax())",
        "most - 1 - int(spared.flip(0).argmax())",
    ),
    Mutant(
        "the running halving becomes a mean",
        "vtc/prunes/holitom_inner.py",
        "torch.exp2(-halvings.float())",
        "1 / (1 + received.gather(1, torch.where(stays, place, into)))",
    ),
    Mutant(
        "the budget of a row holds for each image",
        "vtc/method/units.py",
        '    if per == "row":\n',
        '    if per == "rows":\n',
    ),
)


def copied(folder: Path, mutant: Mutant | None) -> None:
    """A copy of the checkout that is imported as it stands, with the fault in it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for package, home in LINKS.items():
        (folder / "vtc" / package).symlink_to(folder / home)
    if mutant is not None:
        file = folder / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def tried(mutant: Mutant | None, *options: str) -> str:
    """The first test that fails with the fault, or "missed"; without one, the summary."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder, mutant)
        files = [str(folder / "tests" / file) for file in FILES]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *options, *files]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        if done.returncode not in (0, 1) and not failed:
            return f"broken: {(done.stdout + done.stderr)[-300:]}"
        return failed[0].split(" - ")[0].rpartition("/")[2] if failed else "missed"


def main() -> int:
    """Try the faults that were named, or all; the exit status tells whether one was missed that `--all` notices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names; none: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="faults that are tried at a time (default: 2)")
    parser.add_argument("--check", action="store_true", help="only see that each can be planted")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.names or any(part in mutant.name for part in args.names)]
    if args.check:
        for mutant in chosen:
            with tempfile.TemporaryDirectory() as name:
                copied(Path(name), mutant)
        print(f"{len(chosen)} faults can be planted")
        return 0

    def report(mutant: Mutant) -> bool:
        began = time.monotonic()
        found = tried(mutant)
        if found == "missed":
            found = f"missed; with --all: {tried(mutant, '--all')}"
        print(f"{mutant.name} | {found} | {time.monotonic() - began:.0f} s", flush=True)
        return found.startswith("missed; with --all: missed") or not found.startswith(("missed", "broken"))

    with ThreadPoolExecutor(args.jobs) as pool:
        good = list(pool.map(report, chosen))
    print(f"{sum(good)} of {len(good)} faults are noticed by what `make test` chooses, or by no test at all")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
