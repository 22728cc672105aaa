# Two commands for a fresh machine: `make run` and `make test`. Everything lands in .venv; nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: run table compare compare-video share-0 share-1 finetune demo test test-all test-part test-versions survey mutants test-gpu test-lmms \
	test-serve dist bench lint docs clean

# In at most three minutes on two cores: the baselines, and of each kind the four methods that did best in
# docs/methods/results.json (tests/test_best.py holds the list against it), with a quarter and a sixteenth of the tokens.
BASELINES := none,random,stride,pool
BEST := kcenter,cdpruner,mmtok,hiprune,v2drop,pyramiddrop,transprune,vscan_stage2,zero_tprune,flowcut,diffrate,tome
run: OUT ?= runs/embedded
run: METHODS ?= $(BASELINES),$(BEST)
run: LIMIT ?= 64
run: $(VENV)/.done
	@+$(SHARED) ARGS='--methods $(METHODS) --keep 0.25,0.0625 --limit $(LIMIT) --output $(OUT)'
	@$(BIN)/vtc report $(OUT) --output $(OUT)/report.html

# All methods at four budgets, two under one trace (a selector or reducer, then a prune), and videos of 8 frames. The
# documentation's numbers are of LIMIT=270.
table: OUT ?= runs/table
SELECTORS := divprune,kcenter,todre,scope,mmr,vispruner,hiprune,visionzip,prumerge,vscan,tokencorr,trim,$\
	cdpruner,mmtok,recoverable
table: METHODS ?= $(BASELINES),$(SELECTORS),tome,diffrate,flowcut,zero_tprune,token_transforming,$\
	fastv,transprune,pyramiddrop,sparsevlm,holitom_inner,lazyllm,spatten,token_skip,atp,atp_tf,todre_stage2,$\
	dart,v2drop,fitprune,vtw,vscan_stage2
COMPOSED ?= divprune:keep=0.5+pyramiddrop:keep=0.25 hiprune:keep=0.25+fastv:layer=2,keep=0.5 $\
	tome:keep=0.5+transprune:keep=0.25 kcenter:keep=0.25+sparsevlm:keep=0.5
table: LIMIT ?= 90
VIDEO_LIMIT ?= 12
VIDEO_METHODS ?= none,random,frame_stride,pool,divprune,evs,holitom,fastv
table: $(VENV)/.done
	@+$(SHARED) ARGS='--methods $(METHODS) --keep 0.5,0.25,0.125,0.0625 $(addprefix --compress ,$(COMPOSED)) \
		--limit $(LIMIT) --output $(OUT)'
	@+$(SHARED) ARGS='--tasks video --methods $(VIDEO_METHODS) --keep 0.25,0.0625 \
		--limit $(VIDEO_LIMIT) --output $(OUT)-video'
	@$(BIN)/vtc report $(OUT) $(OUT)-video --output $(OUT)/report.html

# All selectors, and their variants, at equal tokens on pictures and clips: what a signal is worth, with paired intervals.
compare: OUT ?= runs/compare
compare: LIMIT ?= 270
compare: CLIPS ?= 120
VARIANTS := divprune:centering=True kcenter:centering=True cdpruner:centering=True vispruner:important=1 $\
	prumerge:plus=True vscan:later_keep=1.0
at = $(foreach keep,$(1),$(foreach variant,$(VARIANTS),--compress $(variant),keep=$(keep)))
compare: $(VENV)/.done
	@+$(SHARED) ARGS='--methods none,random,stride,pool,$(SELECTORS) --keep 64,32,16 $(call at,64 32 16) \
		--limit $(LIMIT) --output $(OUT)/images'
	@+$(SHARED) ARGS='--tasks video --methods none,random,stride,frame_stride,pool,evs,holitom,$(SELECTORS) \
		--keep 64 $(call at,64) --limit $(CLIPS) --output $(OUT)/video'
	@$(BIN)/vtc compare $(OUT) --output $(OUT)/compare.md

# The methods made for videos, with survivors numbered anew and as they were, on clips of 8 and of 32 frames.
compare-video: OUT ?= runs/compare-video
compare-video: CLIPS ?= 48
MADE_FOR_VIDEO := none,random,frame_stride,divprune,evs,vidcom2,v_cast,fastvid
# Budgets of a quarter; thresholds that leave a quarter were calibrated on other clips, for each length.
AT_QUARTER := dycoke:drop=1.0 flashvid:keep=0.24,inner=False holitom:keep=0.25,inner=False
AT_QUARTER_OF_8 := evs:threshold=0.0074 sttm_outer:tau_s=0.9,tau_t=0.9995 llava_scissor:tau=0.9974 prunevid:cluster_ratio=1.0,inner=False
AT_QUARTER_OF_32 := evs:threshold=0.0024 sttm_outer:tau_s=0.9,tau_t=0.9997 llava_scissor:tau=0.9997 prunevid:tau=0.9967,inner=False
clips = --tasks video --frames $(1) --methods $(MADE_FOR_VIDEO) --keep 0.25 --positions packed,original --limit $(CLIPS) $\
	$(addprefix --compress ,$(AT_QUARTER) $(AT_QUARTER_OF_$(1))) --output $(OUT)/$(1)
compare-video: $(VENV)/.done
	@+$(SHARED) ARGS='$(call clips,8)'
	@+$(SHARED) ARGS='$(call clips,32)'
	@$(BIN)/vtc compare $(OUT) --output $(OUT)/compare.md

# Two processes of one thread each share the batches out; times are compared within a batch, which one of them does.
SHARED := $(MAKE) --no-print-directory -j2 share-0 share-1
share-0 share-1: share-%:
	@RANK=$* WORLD_SIZE=2 $(BIN)/vtc eval $(ARGS)

# The bundled model, fine-tuned while it is compressed and, as a control, with all tokens: a table and a figure.
finetune: OUT ?= runs/compressed
finetune: $(VENV)/.done
	@$(BIN)/vtc train-compressed --output $(OUT)

# Two settings side by side in a browser.
PORT ?= 7860
demo: $(VENV)/.done
	$(BIN)/vtc demo --port $(PORT)

# A choice of the contract matrix and of other products of factors, in which every pair of values occurs, and all else.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
test: $(VENV)/.done $(VENV)/.llava $(VENV)/.emulator
	$(PYTEST) tests

# Every cell of the products: several times as long as `make test`, which takes 15 minutes on two cores.
test-all: $(VENV)/.done $(VENV)/.llava $(VENV)/.emulator
	$(PYTEST) --all tests

# PART=K/N: of N parts of what test-all runs and test doesn't the K-th, from 0; an eighth takes about 5 minutes.
PART ?= 0/8
test-part: $(VENV)/.done $(VENV)/.llava $(VENV)/.emulator
	$(PYTEST) --part $(PART) tests

# A chosen part of the tests on the oldest transformers and torch that are supported, on one between, and on the newest
# that there are today: each in an environment of its own over this one.
test-versions: $(VENV)/.done
	$(BIN)/python tests/versions.py

# The table of every image-text-to-text class in docs/families.md, written anew on the installed transformers.
survey: $(VENV)/.done
	$(BIN)/python tests/survey.py --write

# Faults planted in a copy, one at a time: each has to be noticed by what `make test` chooses.
mutants: $(VENV)/.done $(VENV)/.llava
	$(BIN)/python tests/mutants.py

# The CUDA kernels built, checked, sanitized and timed on a GPU, in at most ten minutes; without one, the same tests on
# the torch references and the emulated kernels.
test-gpu: $(VENV)/.done
	$(BIN)/python -m vtc.cuda.check --json runs/gpu.json

# The real lmms-eval, in an environment of its own: it asks for other versions than ours.
LMMS := .venv-lmms
test-lmms: $(LMMS)/.done
	PYTHONPATH=tests/lmms/stand_in $(LMMS)/bin/python -m pytest -o addopts=-q tests/lmms

$(LMMS)/.done: pyproject.toml tests/lmms/requirements.txt tests/lmms/constraints.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/lmms/constraints.txt --requirement tests/lmms/requirements.txt
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# A real vLLM, in an environment of its own, which takes about three minutes to install: every served model and method
# against transformers, and the server under load. Where it can't be installed, that is said, and nothing is run. Three
# packages that it brings can't be loaded beside a CPU build of torch, and what looks for them goes on without them.
SERVE := .venv-serve
test-serve:
	@if $(MAKE) --no-print-directory $(SERVE)/.done; then \
		PYTHONPATH=tests/serve/stand_in $(SERVE)/bin/python -m pytest -o addopts=-q -n 2 --dist loadfile tests/serve; \
	else echo "make test-serve: SKIPPED, since vLLM could not be installed; what pip said stands above"; fi

$(SERVE)/.done: pyproject.toml tests/serve/requirements.txt tests/serve/constraints.txt
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/serve/constraints.txt --requirement tests/serve/requirements.txt
	$(SERVE)/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchaudio torchcodec triton
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Sdist and wheel in dist/, checked, and the wheel tried in an empty environment of each of these Pythons that is here.
PYTHONS ?= python3.11 python3.13
dist: $(VENV)/.done
	$(BIN)/python tests/dist.py $(PYTHONS)

bench: $(VENV)/.done
	$(BIN)/vtc bench prefill --model embedded --methods divprune,fastv --keep 0.25,0.125,0.0625 --batch-size 8

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/circles.py
	rm -rf build/lib build/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/installed .
	cd build/installed && PYTHONPATH=. $(abspath $(BIN))/lint-imports ../../pyproject.toml
	cd build/installed && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p vtc

# The documentation, strictly: a warning is an error. It is read from build/site/index.html, without a server.
docs: $(VENV)/.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vtc needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[eval,video,demo,ray,train,test,dev,docs]"
	touch $@

# The original LLaVA package, which tests patch, without its pins: they ask for a torch and a transformers of 2023.
$(VENV)/.llava: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llava-torch
	touch $@

# The kernels over an emulator on the CPU, where there is a C++ compiler; tests that find none compile it themselves.
$(VENV)/.emulator: $(VENV)/.done $(wildcard cuda/kernels/*.cu* tests/cuda_emulator/*.*)
	PYTHONPATH=tests $(BIN)/python -c 'import cuda_emulator as emulator; emulator.compiler() and emulator.library()'
	touch $@

clean:
	rm -rf $(VENV) .venv-versions $(LMMS) $(SERVE) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
