"""Experiment files: what loads, what comes back, and what each defect is told as."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from broker_server.assignment import POLICIES
from broker_server.config import load_experiment, to_toml
from broker_server.experiment import Data, Experiment, Model
from broker_server.load import Balance
from device_profiles.catalogue.profiles import LINKS
from edge_runtime.codec import PRESETS, Preset
from edge_runtime.errors import ConfigError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "experiment.toml"


def load(file: Path, text: str, *overrides: str) -> Experiment:
    file.write_text(text, encoding="utf-8")
    return load_experiment(file, overrides)


def complaint(file: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, text, *overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_an_empty_file_is_the_default_experiment(file: Path) -> None:
    experiment = load(file, "")
    assert experiment == Experiment()
    assert (experiment.rounds, experiment.data.devices, experiment.model.experts) == (30, 8, 8)
    assert (experiment.train.epochs, experiment.train.learning_rate) == (5, 0.05)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiments_that_we_ship_load(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    if path.stem == "quickstart":
        assert (experiment.data, experiment.model) == (Data(), Model())
    elif experiment.data.dataset != "digits":
        assert Path(experiment.data.path).parent == EXPERIMENTS / "data"


def test_a_whole_number_may_stand_for_a_fraction_but_not_the_reverse(file: Path) -> None:
    assert load(file, "[assignment]\ndelta = 1").assignment.delta == 1.0
    assert "expected a whole number" in complaint(file, "[train]\nepochs = 3.0")
    assert "expected a whole number" in complaint(file, "[train]\nepochs = true")
    assert "expected a number > 0" in complaint(file, "[train]\nlearning_rate = true")


def test_the_broker_may_be_a_text(file: Path) -> None:
    assert load(file, 'broker = "amqtt"').broker.address == "amqtt"
    assert load(file, 'broker = "10.0.0.7:1883"').broker.address == "10.0.0.7:1883"
    with_port = load(file, 'broker = "amqtt"', "broker.port=1999")
    assert (with_port.broker.address, with_port.broker.port) == ("amqtt", 1999)
    replaced = load(file, "[broker]\nport = 1999", "broker=localhost:1883")
    assert (replaced.broker.address, replaced.broker.port) == ("localhost:1883", 1999)


def test_the_model_is_that_of_the_data_set_unless_it_is_named(file: Path) -> None:
    for dataset in ("har", "cifar", "fashion"):
        assert load(file, f'[data]\ndataset = "{dataset}"\npath = "x"').model.name == dataset
    assert 'model.name: expected "digits"' in complaint(file, '[model]\nname = "har"')


def test_paths_start_at_the_file_and_overrides_at_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = '[data]\ndataset = "har"\npath = "sub/har.npz"'
    assert load(file, text).data.path == str(tmp_path / "sub" / "har.npz")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load(file, text, "data.path=har.zip").data.path == str(here / "har.zip")
    assert load(file, text, "data.path=/data/har.zip").data.path == "/data/har.zip"


def test_an_assignments_file_is_found_as_a_data_set_is(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = '[assignment]\npolicy = "fixed"\nfile = "sub/X.npy"'
    assert load(file, text).assignment.file == str(tmp_path / "sub" / "X.npy")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed, found in (("X.npy", here / "X.npy"), ("~/X.npy", tmp_path / "X.npy")):
        override = load(file, text, f"assignment.file={typed}")
        assert override.assignment.file == str(found)
    together = load(file, "", "assignment.policy=fixed", "assignment.file=../X.npy")
    assert together.assignment.file == str(tmp_path / "X.npy")
    assert load(file, "").assignment.file == ""
    # A resolved experiment is the same wherever it lies.
    elsewhere = here / "config.toml"
    elsewhere.write_text(to_toml(together), encoding="utf-8")
    assert load_experiment(elsewhere) == together


def test_an_unknown_policy_is_told_all_that_there_are(file: Path) -> None:
    names = " or ".join(f'"{name}"' for name in POLICIES)
    message = complaint(file, "[assignment]\npolicy = 'best'")
    assert message == f'{file}: assignment.policy: expected {names}, got "best"'


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_named(file: Path, name: str) -> None:
    text = f"[assignment]\npolicy = '{name}'\nfile = 'X.npy'"
    assert load(file, text).assignment.policy == name


def test_overrides_are_toml_values_or_texts(file: Path) -> None:
    experiment = load(
        file,
        "[train]\nepochs = 9\nbatch = 16",
        "train.epochs=3",
        "assignment.policy=greedy",
        'gate.mode="local"',
        "model.experts_per_device = [1, 2]",
        "data.partition=dirichlet(1e-1)",
        "name=7",
        "train.epochs=4",
    )
    assert (experiment.train.epochs, experiment.train.batch) == (4, 16)
    assert (experiment.assignment.policy, experiment.gate.mode) == ("greedy", "local")
    assert experiment.model.experts_per_device == (1, 2)
    assert experiment.data.partition == "dirichlet(1e-1)"
    assert experiment.name == "7"


def test_a_presets_codecs_may_be_replaced_one_by_one(file: Path) -> None:
    file.write_text('[wire]\npreset = "narrow"\ndownlink = "int8+zip"')
    codings = load_experiment(file, ["wire.uplink=int4"]).wire.codings
    assert codings == Preset("int4", "int8+zip", PRESETS["narrow"].whole)
    assert Experiment().wire.codings == PRESETS["default"]


def test_a_list_of_capacities_is_dealt_out_in_order(file: Path) -> None:
    model = load(file, "[model]\nexperts_per_device = [1, 2, 4]").model
    assert [model.experts_asked(device) for device in range(5)] == [1, 2, 4, 1, 2]
    assert load(file, "").model.experts_asked(6) == 2


@pytest.mark.parametrize(
    ("text", "key", "allowed", "came"),
    [
        ("seed = -1", "seed", "a whole number >= 0 and < 4294967296", "-1"),
        ("rounds = 0", "rounds", "a whole number >= 1", "0"),
        ("name = 'a b'", "name", "1 to 64 letters", '"a b"'),
        ("name = ''", "name", "1 to 64 letters", '""'),
        ("name = [1]", "name", "a text", "[1]"),
        ("train = 3", "train", "a table", "3"),
        ("[rounds]", "rounds", "a whole number", "a table"),
        ("[data]\ndevices = 0", "data.devices", "a whole number >= 1", "0"),
        ("[data]\ntest_fraction = 1", "data.test_fraction", "a number >= 0 and < 1", "1"),
        ("[data]\npartition = 'dirichlet(0)'", "data.partition", "iid", '"dirichlet(0)"'),
        ("[data]\npartition = 'classes(0)'", "data.partition", "iid", '"classes(0)"'),
        ("[data]\npartition = 'natural'", "data.partition", "iid", '"natural"'),
        ("[data]\npartition = ' natural '", "data.partition", "iid", '" natural "'),
        ("[data]\npath = 'x'", "data.path", "no path", '"'),
        ("[data]\ndataset = 'har'", "data.path", "the file or folder", "nothing"),
        ("[data]\ndataset = 'mnist'", "data.dataset", '"digits" or "har"', '"mnist"'),
        ("[model]\nexperts_per_device = 9", "model.experts_per_device", "at most", "9"),
        ("[model]\nexperts_per_device = [2, 9]", "model.experts_per_device", "at most", "[2, 9]"),
        ("[model]\nexperts_per_device = []", "model.experts_per_device", "a whole", "[]"),
        ("[model]\nexperts_per_device = 0", "model.experts_per_device", "a whole", "0"),
        ("[train]\nbatch = 0", "train.batch", "a whole number >= 1", "0"),
        ("[train]\nlearning_rate = nan", "train.learning_rate", "a number > 0", "nan"),
        ("[train]\nlearning_rate = inf", "train.learning_rate", "a number > 0", "inf"),
        ("[train]\nmomentum = 1.0", "train.momentum", "a number >= 0 and < 1", "1.0"),
        ("[train]\ntrainer = 'torch'", "train.trainer", '"native" or "executorch"', '"torch"'),
        ("[train]\noptimizer = 'adam'", "train.optimizer", '"sgd" or "adamw"', '"adam"'),
        ("[train]\nbeta1 = 1", "train.beta1", "a number >= 0 and < 1", "1"),
        ("[train]\nbeta2 = -0.1", "train.beta2", "a number >= 0 and < 1", "-0.1"),
        ("[train]\nepsilon = 0", "train.epsilon", "a number > 0", "0"),
        ("[train]\nclip_norm = -1", "train.clip_norm", "a number >= 0", "-1"),
        ("[train]\nlearning_rate = 1e300", "train.learning_rate", "a number > 0 in flo", "1e+300"),
        ("[train]\nbeta2 = 0.9999999999", "train.beta2", "a number >= 0 and < 1 in float32", "0.9"),
        ("[train]\nmomentum = 0.999999999999", "train.momentum", "a number >= 0 and < 1 in", "0.9"),
        ("[train]\nepsilon = 1e-60", "train.epsilon", "a number > 0 in float32", "1e-60"),
        ("[train]\nclip_norm = 1e-60", "train.clip_norm", "0, or a number > 0 in", "1e-60"),
        ("[train]\nweight_decay = 1e60", "train.weight_decay", "0, or a number > 0", "1e+60"),
        (
            "rounds = 200\n[train]\nlearning_rate_decay = 0.5",
            "train.learning_rate_decay",
            "more: the learning rate becomes 0 in float32 before the last round",
            "0.5",
        ),
        ("[train]\nmicro_batch = -1", "train.micro_batch", "a whole number >= 0", "-1"),
        ("[train]\nmicro_batch = 5", "train.micro_batch", "a divisor of train.batch = 32", "5"),
        ("[train]\nmicro_batch = 64", "train.micro_batch", "a divisor of train.batch", "64"),
        ("[train]\nthreads = -1", "train.threads", "a whole number >= 0", "-1"),
        ("[train]\nthreads = 257", "train.threads", "a whole number >= 0 and <= 256", "257"),
        ("[fitness]\nbeta = 1.5", "fitness.beta", "a number >= 0 and <= 1", "1.5"),
        ("[assignment]\ndelta = -0.1", "assignment.delta", "a number >= 0", "-0.1"),
        ("[assignment]\npolicy = 'best'", "assignment.policy", '"flex_moe" or', '"best"'),
        ("[assignment]\nsolver = 'lp'", "assignment.solver", '"auto" or "exact" or', '"lp"'),
        ("[assignment]\nbalance = 'even'", "assignment.balance", '"assigned" or', '"even"'),
        ("[assignment]\npenalty = -1", "assignment.penalty", "a number >= 0", "-1"),
        ("[assignment]\npenalty = nan", "assignment.penalty", "a number >= 0", "nan"),
        ("[assignment]\npolicy = 'fixed'", "assignment.file", "the .npy", "nothing"),
        ("[assignment]\npolicy = 'fixed'\nfile = ''", "assignment.file", "the .npy", '""'),
        ("[assignment]\nfile = 3", "assignment.file", "a text", "3"),
        ("[participation]\nfraction = 0", "participation.fraction", "a number > 0 and <= 1", "0"),
        ("[participation]\nfraction = 1.01", "participation.fraction", "a number > 0", "1.01"),
        ("[participation]\nfraction = nan", "participation.fraction", "a number > 0", "nan"),
        ("[participation]\ncount = -1", "participation.count", "a whole number >= 0", "-1"),
        ("[participation]\ncount = 1.5", "participation.count", "a whole number >= 0", "1.5"),
        ("[train]\nbalance_loss = -0.1", "train.balance_loss", "a number >= 0", "-0.1"),
        ("[train]\nbalance_loss = inf", "train.balance_loss", "a number >= 0", "inf"),
        ("[round]\nquorum = 0", "round.quorum", "a number > 0 and <= 1", "0"),
        ("[round]\ndeadline_s = 2000-01-01", "round.deadline_s", "a number", "2000-01-01"),
        ("[wire]\npreset = 'best'", "wire.preset", '"lossless" or "default" or', '"best"'),
        ("[wire]\nuplink = 'int9'", "wire.uplink", "a codec such as raw", '"int9"'),
        ("[wire]\nuplink = 'topk(2)'", "wire.uplink", "a codec such as raw", '"topk(2)"'),
        ("[wire]\ndownlink = 'raw+gzip'", "wire.downlink", "a codec such as", '"raw+gzip"'),
        ("[wire]\nwhole = 3", "wire.whole", "a text", "3"),
        ("[wire]\nwhole_every = -1", "wire.whole_every", "a whole number >= 0", "-1"),
        ("[wire]\nlinks = 'wlan'", "wire.links", "a class of links (ethernet, wifi,", '"wlan"'),
        ("[wire]\nlinks = ['wifi', 3]", "wire.links", "a class of links", '["wifi", 3]'),
        ("[wire]\nlinks = []", "wire.links", "a class of links", "[]"),
        ("[wire]\nbytes_per_round = -1", "wire.bytes_per_round", "a whole number of bytes", "-1"),
        ("[wire]\nbytes_per_round = 1e6", "wire.bytes_per_round", "a whole", "1000000.0"),
        ("[wire]\nbytes_per_round = true", "wire.bytes_per_round", "a whole", "true"),
        (
            "[wire]\nbytes_per_round = { wifi = '9' }",
            "wire.bytes_per_round",
            "a whole number of bytes from 0 to 2^40, or a table of such by names of devices,",
            '{ wifi = "9" }',
        ),
        ("[broker]\nport = 65536", "broker.port", "a whole number", "65536"),
        ("broker = 'host'", "broker.address", "auto, mosquitto, amqtt", '"host"'),
        ("broker = 'host:70000'", "broker.address", "auto, mosquitto, amqtt", '"host:70000"'),
        ("[broker]\nfederation = 'a/b'", "broker.federation", "1 to 64 letters", '"a/b"'),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(
    file: Path, text: str, key: str, allowed: str, came: str
) -> None:
    message = complaint(file, text)
    assert message.startswith(f"{file}: {key}: expected {allowed}")
    assert f", got {came}" in message


def test_a_budget_of_nobody_is_refused(file: Path) -> None:
    """Any name may be a device's, but for one that no device can have, and one that is a slip."""
    message = complaint(file, "[wire]\nbytes_per_round = { 'a b' = 5 }")
    assert "(no device can be called 'a b'), got { \"a b\" = 5 }" in message
    for slip in ("nbiot", "NB_IoT", "NB-IOT"):
        message = complaint(file, "", f"wire.bytes_per_round.{slip}=5")
        assert message.startswith(f"--set wire.bytes_per_round.{slip}=5: wire.bytes_per_round:")
        assert f"(nb-iot, not {slip}), got {{ {slip} = 5 }}" in message
    message = complaint(file, "[wire]\nbytes_per_round = 5", "wire.bytes_per_round.wifi=5")
    assert "expected bytes_per_round to be a table in the experiment file, got 5" in message


def test_a_budget_is_the_devices_own_or_its_classs_or_that_of_all(file: Path) -> None:
    table = "{nb-iot = 20000, device-03 = 5000, 'a.b' = 0, all = 9}"
    for experiment in (
        load(file, f"[wire]\nbytes_per_round = {table}"),
        load(file, "", f"wire.bytes_per_round={table}"),
        load(file, "", *(f"wire.bytes_per_round.{item}" for item in
             ("nb-iot=20000", "device-03=5000", "all=9"))),
    ):  # fmt: skip
        wire = experiment.wire
        assert wire.budget_of("device-01", "nb-iot") == 20_000
        assert wire.budget_of("device-03", "nb-iot") == wire.budget_of("device-03", "") == 5000
        assert wire.budget_of("device-01", "wifi") == wire.budget_of("device-01", "") == 9
    assert wire.budget_of("a.b", "") == 9
    assert load(file, f"[wire]\nbytes_per_round = {table}").wire.budget_of("a.b", "nb-iot") == 0
    assert load(file, "").wire.budget_of("device-01", "wifi") == 0
    assert load(file, "", "wire.bytes_per_round=7").wire.budget_of("device-01", "") == 7
    few = load(file, "", "wire.bytes_per_round={lora=7}")
    assert few.wire.budget_of("device-01", "wifi") == 0


def test_classes_of_links_are_dealt_out_in_order(file: Path) -> None:
    dealt = load(file, "", "wire.links=['wifi', '', 'nb-iot']").wire
    assert [dealt.link_of(i) for i in range(5)] == ["wifi", "", "nb-iot", "wifi", ""]
    assert [load(file, "", "wire.links=lora").wire.link_of(i) for i in range(2)] == ["lora"] * 2
    assert load(file, "").wire.link_of(3) == ""


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("[train]\nepoch = 3", "unknown key train.epoch; did you mean train.epochs?"),
        ("epochs = 3", "unknown key epochs; did you mean train.epochs?"),
        ("[trian]\nepochs = 3", "unknown key trian; did you mean train?"),
        ("[train]\npolicy = 'full'", "unknown key train.policy; did you mean assignment.policy?"),
        ("[gate]\nzzz = 3", "unknown key gate.zzz; known keys are gate.mode"),
        ("zzz = 3", "unknown key zzz; known keys are name, seed, rounds, data"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_one(file: Path, text: str, advice: str) -> None:
    assert complaint(file, text).startswith(f"{file}: {advice}")


def test_an_override_is_named_instead_of_the_file(file: Path) -> None:
    bad = complaint(file, "", "train.epochs=0")
    assert bad.startswith("--set train.epochs=0: train.epochs: expected a whole number >= 1")
    assert complaint(file, "", "a.b.c=1").startswith("--set a.b.c=1: unknown key a;")
    assert complaint(file, "", "train") == ("--set train: expected key=value, as in train.epochs=3")
    assert "expected train to be a table" in complaint(file, "train = 3", "train.epochs=3")
    assert complaint(file, "seed = -1", "train.epochs=3").startswith(f"{file}: seed:")


def test_of_several_defects_the_first_is_named_and_the_others_are_counted(file: Path) -> None:
    message = complaint(file, "rounds = 0\nzzz = 1\n[train]\nepochs = 'x'")
    assert f"{file}: rounds:" in message
    assert message.endswith("(and 2 more defects)")
    conflicts = complaint(file, "[data]\ndataset = 'cifar'\npartition = 'natural'")
    assert "data.path:" in conflicts
    assert conflicts.endswith("(and 1 more defect)")


def test_what_is_not_toml_is_said_with_its_place(file: Path, tmp_path: Path) -> None:
    assert "not TOML" in complaint(file, "a = \n")
    assert "line 2" in complaint(file, "rounds = 3\n]")
    assert "not TOML" in complaint(file, f"a = {'[' * 100_000}")
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_experiment(file)
    with pytest.raises(ConfigError, match=r"no\.toml: no such file"):
        load_experiment(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path)


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Experiment().rounds = 3


def test_the_resolved_file_explains_every_key() -> None:
    experiment = Experiment(data={"devices": 3}, fleet=[{"profile": "pi-4b", "count": 3}])
    lines = to_toml(experiment).splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line and line[0] != "#"]
    known = experiment.model_dump()
    known["fleet"] = known["fleet"][0]
    assert len(keys) == sum(len(x) if isinstance(x, dict) else 1 for x in known.values())
    assert all(lines[number - 1].startswith("# ") for number in keys)
    assert max(map(len, lines)) <= 100


BYTES = st.integers(0, 1 << 40)
LINK_NAMES = st.sampled_from(["", *LINKS])
FRACTIONS = st.floats(min_value=1e-9, max_value=0.999)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    seed=st.integers(0, 2**32 - 1),
    path=st.text(min_size=1, max_size=20).filter(
        lambda text: text.isprintable() and not text.startswith("~") and "\0" not in text
    ),
    alpha=FRACTIONS,
    capacities=st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple) | st.integers(1, 8),
    rate=FRACTIONS,
    policy=st.sampled_from(list(POLICIES)),
    balance=st.sampled_from(get_args(Balance)),
    count=st.integers(0, 9),
    links=LINK_NAMES | st.lists(LINK_NAMES, min_size=1, max_size=4).map(tuple),
    budgets=BYTES | st.dictionaries(st.sampled_from([*LINKS, "all", "device-03", "a.b"]), BYTES),
)
def test_what_is_written_loads_back_equal(
    tmp_path: Path,
    name: str,
    seed: int,
    path: str,
    alpha: float,
    capacities: int | tuple[int, ...],
    rate: float,
    policy: str,
    balance: str,
    count: int,
    links: str | tuple[str, ...],
    budgets: int | dict[str, int],
) -> None:
    experiment = Experiment.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {
                "dataset": "har",
                "path": str((tmp_path / path.replace("/", "_")).resolve()),
                "partition": f"dirichlet({alpha!r})",
            },
            "model": {"experts_per_device": capacities},
            "train": {"learning_rate": rate, "momentum": rate, "balance_loss": alpha},
            "assignment": {
                "policy": policy,
                "delta": alpha,
                "balance": balance,
                "file": str(tmp_path / "X.npy"),
            },
            "participation": {"fraction": rate, "count": count},
            "wire": {
                "preset": "narrow",
                "uplink": f"topk({rate!r})",
                "whole_every": count,
                "links": links,
                "bytes_per_round": budgets,
            },
        }
    )
    written = tmp_path / "config.toml"
    written.write_text(to_toml(experiment), encoding="utf-8")
    assert load_experiment(written) == experiment
