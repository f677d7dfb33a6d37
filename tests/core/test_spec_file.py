"""Reading a cluster YAML: every problem with its line, and no file that can do harm."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.core.spec import check_against_model
from twinpool.core.spec_file import MAX_DEPTH, MAX_FILE_BYTES, MAX_PROBLEMS, load_cluster, read_cluster

ROOT = Path(__file__).resolve().parents[2]
GOOD = "name: x\nmodel: {path: 'dummy:tiny'}\npools:\n  mixed: {workers: 1}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "cluster.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines_of(path: Path) -> list[str]:
    """The problems of a file that must not load, without the file's name."""
    with pytest.raises(SpecError) as caught:
        load_cluster(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}:") for line in lines), lines
    return [line.removeprefix(f"{path}:") for line in lines]


def test_a_good_file_loads(tmp_path: Path):
    assert load_cluster(write(tmp_path, GOOD)).pools.mixed.workers == 1
    assert load_cluster(write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).name == "x"
    assert load_cluster(str(write(tmp_path, "{}".join(["---\n", "\n"]).replace("{}", GOOD)))).name == "x"


def test_every_problem_is_one_line_with_its_place_in_the_order_of_the_file(tmp_path: Path):
    text = """\
name: Demo
model:
  path: nowhere
  dtpye: auto
pools:
  prefill:
    workers: -1
  decode: {workers: 1,
           tensor_parallel: 2}
kv:
goals:
  default: {ttft_s: .nan}
transfer: {digest: maybe}
"""
    assert lines_of(write(tmp_path, text)) == [
        "1: name: must match pattern '^[a-z0-9-]{1,40}$', not 'Demo'",
        f"3: model.path: '{tmp_path}/nowhere' is not there",
        "4: model.dtpye: unknown key; did you mean dtype?",
        "7: pools.prefill.workers: must be greater than or equal to 0, not -1",
        "9: pools.decode.tensor_parallel: 2 is not supported by this version, only 1",
        "10: kv: must be a mapping of keys to values, not nothing",
        "12: goals.default.tpot_s: is missing",
        "12: goals.default.ttft_s: must be a finite number, not nan",
        "13: transfer.digest: must be true or false, not 'maybe'",
    ]


def test_a_missing_section_is_reported_at_the_top(tmp_path: Path):
    assert lines_of(write(tmp_path, "# comment\nname: x\nmodel: {path: 'dummy:a'}\n")) == ["2: pools: is missing"]


def test_keys_given_twice_are_all_refused(tmp_path: Path):
    text = GOOD + "name: y\nkv: {memory: 1GiB, memory: 2GiB}\n"
    assert lines_of(write(tmp_path, text)) == [
        "1: name: is given again in line 5",
        "6: kv.memory: is given again in line 6",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", " is empty"),
        ("# nothing\n", " is empty"),
        ("- a\n", "1: must be a mapping of keys to values"),
        ("!!python/object:os.system {}\n", "1: must be a mapping of keys to values"),
        ("\n\nword\n", "3: must be a mapping of keys to values"),
        ("name: [\n", "2: is not YAML: "),
        ("name: x\n  y: z\n", "2: is not YAML: "),
        ("a: 1\n---\nb: 2\n", "2: is not YAML: "),
        ("name: 'x\n", "2: is not YAML: "),
        ("name: \x00\n", " is not YAML: "),
        ("%YAML 9.9\n---\na: 1\n", "1: is not YAML: "),
        (b"name: x\n\xff\xfe\n", "2: is not UTF-8 text"),
        ("a: &x 1\nb: *x\n", "1: YAML anchors and aliases are not supported"),
        ("a: 1\nb: *x\n", "2: YAML anchors and aliases are not supported"),
        ("a: &x [*x]\n", "1: YAML anchors and aliases are not supported"),
        ("<<: {a: 1}\n" + GOOD, "1: '<<': unknown key"),
        ("a:\n" + "[" * (MAX_DEPTH + 1), f"2: is nested over {MAX_DEPTH} deep"),
        ("[" * (MAX_FILE_BYTES // 2), f"1: is nested over {MAX_DEPTH} deep"),
        ("#" * (MAX_FILE_BYTES + 1), " is over 64 KiB, which no cluster needs"),
        ("? [a]\n: 1\n" + GOOD, "1: the key in line 1 is not a word"),
        (
            GOOD.replace("name: x", "name: !!python/name:os.system x"),
            "1: name: YAML tag 'tag:yaml.org,2002:python/name:os.system'",
        ),
        (GOOD + "kv: !secret {memory: 1GiB}\n", "5: kv: YAML tag '!secret' is not supported"),
        (GOOD + "kv: {block_tokens: !!int abc}\n", "5: kv.block_tokens: 'abc' cannot be read as int"),
        (GOOD + "kv: {prefix_cache: !!bool abc}\n", "5: kv.prefix_cache: 'abc' cannot be read as bool"),
        (GOOD + f"kv: {{block_tokens: {'9' * 5000}}}\n", "5: kv.block_tokens: '99999"),
        (GOOD + "1: 2\n", "5: 1: unknown key"),
        (GOOD.replace("'dummy:tiny'", "2020-01-01"), "2: model.path: "),
        (GOOD.replace("tiny", ""), "2: model.path: names no shape after 'dummy:'"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path: Path, text: str | bytes, expected: str):
    (line,) = lines_of(write(tmp_path, text))
    assert line.startswith(expected)


def test_files_that_cannot_be_read_give_one_clear_line(tmp_path: Path):
    assert lines_of(tmp_path / "missing.yaml") == [" no such file"]
    assert lines_of(tmp_path) == [" cannot be read: Is a directory"]
    assert lines_of(write(tmp_path, "") / "x") == [" cannot be read: Not a directory"]


def test_the_model_is_looked_for_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models" / "m").mkdir(parents=True)
    path = write(tmp_path, GOOD.replace("dummy:tiny", "models/m"))
    monkeypatch.chdir("/")
    assert load_cluster(path).model.path == str(tmp_path / "models" / "m")


@pytest.mark.parametrize("model", ["dummy:llama-3-8b", "modelled:small"])
def test_models_that_are_no_directory_are_kept_as_named(tmp_path: Path, model: str):
    assert load_cluster(write(tmp_path, GOOD.replace("dummy:tiny", model))).model.path == model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("missing", "is not there"),
        ("cluster.yaml", "is no directory"),
        ("/", None),
        ("~no-such-user/x", "cannot be read"),
        ("x" * 300, "cannot be read"),
        ("new\\nline", "is not there"),
        ("nul\\0byte", "cannot be read"),
    ],
)
def test_a_model_that_is_no_directory_is_refused_in_its_line(tmp_path: Path, model: str, expected: str | None):
    path = write(tmp_path, GOOD.replace("'dummy:tiny'", f'"{model}"'))
    if expected is None:
        assert load_cluster(path).model.path == model
        return
    (line,) = lines_of(path)
    assert line.startswith("2: model.path: ")
    assert expected in line


def test_problems_found_later_still_name_their_line(tmp_path: Path):
    file = read_cluster(write(tmp_path, GOOD + "kv:\n  memory: 1MiB\n"))
    file.refuse(())
    with pytest.raises(SpecError) as caught:
        file.refuse(check_against_model(file.spec, kv_token_bytes=2**20, max_position_embeddings=64))
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{file.path}:2: model.max_model_len: 2048 is over")  # not in the file: its section's line
    assert second.startswith(f"{file.path}:6: kv.memory: 1048576 bytes hold 0 tokens")


def test_very_many_problems_are_cut_short(tmp_path: Path):
    lines = lines_of(write(tmp_path, GOOD + "".join(f"key{i}: 1\n" for i in range(MAX_PROBLEMS + 7))))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == " and 7 more problems"


@given(text=st.text(max_size=200) | st.text(alphabet="ab:-[]{},'\"#&*!|>%@?~\n 0.", max_size=60))
def test_any_text_loads_or_is_refused_in_lines_that_name_the_file(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = write(tmp_path_factory.getbasetemp(), text.encode(errors="surrogatepass"))
    assert lines_of(path)


def test_the_examples_of_the_manual_load(tmp_path: Path):
    blocks = (ROOT / "docs" / "cluster-yaml.md").read_text().split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        text = block.partition("```")[0].replace("models/tiny", "dummy:tiny")
        assert load_cluster(write(tmp_path, text)).name
