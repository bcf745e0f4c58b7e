"""Config files: what is written is read back, and what is no option or not its value, refused."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkern import fl
from fedkern.fl import config_file

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: TEXTS,
    bool: st.booleans(),
    list: st.lists(TEXTS),
}
TYPES = {key: kind for key, kind in config_file.key_types().items() if key != "method"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.toml"


@given(settings=st.fixed_dictionaries({}, optional={k: VALUES[t] for k, t in TYPES.items()}))
def test_what_is_written_is_read_back(tmp_path_factory, settings):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    config_file.write(settings, path)
    read = config_file.read(path)
    assert read == settings
    assert [*map(type, read.values())] == [type(settings[key]) for key in read]
    first = path.read_bytes()
    config_file.write(dict(reversed(read.items())), path)  # in any order
    assert path.read_bytes() == first


def test_all_settings_of_runs_methods_and_parts_are_keys():
    types = config_file.key_types()
    assert types.keys() >= vars(fl.RunConfig()).keys()
    for name in fl.METHODS:
        assert types.keys() >= vars(fl.build_method(name)).keys()
    assert (types["workers"], types["data_root"], types["lr"]) == (int, str, float)


def test_what_was_not_given_is_not_written(path):
    config_file.write({"rounds": 3, "workers": None, "data_root": None}, path)
    assert path.read_text() == "# fedkern run --config run.toml\nrounds = 3\n"


def test_numbers_and_methods_in_their_spellings(path):
    path.write_text('method = "fedga"\nlr = 1\nclip = inf\nrounds = 1_000\nweight_decay = 5e-4\n')
    settings = config_file.read(path)
    assert settings == {
        "lr": 1.0,
        "clip": math.inf,
        "rounds": 1000,
        "weight_decay": 5e-4,
        "methods": ["fedga"],
    }
    assert type(settings["lr"]) is float


def test_later_settings_go_over_earlier_ones():
    merged = config_file.merge({"seeds": 1, "rounds": 5}, {"rounds": 0, "lr": 0.5}, {"lr": None})
    assert merged == {"seeds": 1, "rounds": 0, "lr": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds = 3\nlr =\nseed = 1", r"^config: wanted a TOML file, got .*run\.toml: .*line 2"),
        ("rounds = 3\nrounds = 4\nseed = 1", r"^config: wanted a TOML file, got .*line 2"),
        ("augment = " + "[" * 10**5, "^config: wanted a TOML file, got .*run.toml: "),
        ("round = 3", "^config: wanted options as keys, got 'round' in .* .did you mean 'rounds'?"),
        ("batch-size = 3", "^config: .* got 'batch-size' in .* .did you mean 'batch_size'?"),
        ("config = 'x'", "^config: wanted options as keys, got 'config' in"),
        ("qqqqqqqq = 3", r"^config: wanted options as keys, got 'qqqqqqqq' in .*run\.toml$"),
        ("[floco]\ntau = 3", "^config: wanted options as keys, got 'floco' in"),
        ("[methods]\nfloco = 3", "^methods: wanted a list of strings, got a table in"),
        ("lr.local = 3", "^lr: wanted a number, got a table in"),
        ("rounds = 3.0", r"^rounds: wanted an integer, got 3\.0 in"),
        ("rounds = true", "^rounds: wanted an integer, got True in"),
        ("rounds = '3'", "^rounds: wanted an integer, got '3' in"),
        ("seeds = [3]", r"^seeds: wanted an integer, got \[3\] in"),
        ("lr = '0.1'", "^lr: wanted a number, got '0.1' in"),
        ("lr = true", "^lr: wanted a number, got True in"),
        ("clip = 'inf'", "^clip: wanted a number, got 'inf' in"),
        (f"lr = 1{400 * '0'}", "^lr: wanted a number, got 1000"),
        ("lr = 1979-05-27", "^lr: wanted a number, got datetime"),
        ("dataset = 3", "^dataset: wanted a string, got 3 in"),
        ("out = ['a']", r"^out: wanted a string, got \['a'\] in"),
        (r'out = "a\u0000"', "^out: wanted a string, got "),
        ("normalize = 1", "^normalize: wanted true or false, got 1 in"),
        ("overwrite = 'no'", "^overwrite: wanted true or false, got 'no' in"),
        ("loss = false", "^loss: wanted a string, got False in"),
        ("methods = 'fedga'", "^methods: wanted a list of strings, got 'fedga' in"),
        ("methods = ['fedga', 3]", r"^methods: wanted a list of strings, got \['fedga', 3\] in"),
        ("methods = [['fedga']]", r"^methods: wanted a list of strings, got \[\['fedga'\]\] in"),
        ("method = ['fedga']", r"^method: wanted a string, got \['fedga'\] in"),
        ("method = 'fedga'\nmethods = []", "^method: wanted this or methods, got both in"),
    ],
)
def test_what_is_no_setting_is_refused(path, text, message):
    path.write_text(text)
    with pytest.raises(fl.ConfigError, match=message) as caught:
        config_file.read(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_file_is_refused(tmp_path, path):
    def refused(path, reason):
        start = re.escape(f"config: wanted a TOML file, got {path}: ")
        with pytest.raises(fl.ConfigError, match=f"^{start}.*{reason}"):
            config_file.read(path)

    refused(path, "No such file")
    refused(tmp_path, "Is a directory")
    path.write_bytes("out = 'é'".encode("latin-1"))
    refused(path, "'utf-8' codec")


def test_a_path_of_any_bytes_is_written(path):
    config_file.write({"data_root": "\udcff"}, path)
    assert path.read_bytes().endswith(b'data_root = "\xff"\n')
