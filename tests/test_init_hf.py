"""`init --hf` on tiny models and data as people have them: the job it writes runs as it is."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from saved_models import WORDS, save_causal, save_tokenizer

import streamfluence
from streamfluence.cli import main
from streamfluence.stages.run import run
from streamfluence.task_file import load_task

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.filterwarnings("ignore")


def init(folder: Path, *arguments) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["init", *map(str, arguments), str(folder / "job")])
    return found.exit_code, " ".join(found.output.split())


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=random.integers(2, 7))) for _ in range(count)]


@pytest.fixture
def causal(tmp_path):
    """A causal language model with its tokenizer, and a Parquet file of questions and answers."""
    save_tokenizer(tmp_path / "model")
    save_causal(tmp_path / "model")
    columns = {"q": [f"{each} " for each in sentences(24)], "a": sentences(24)[::-1]}
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    return tmp_path


def asked_of(folder: Path) -> dict:
    return tomllib.loads((folder / "job" / "job.toml").read_text())


def test_a_language_model_and_a_parquet_file_need_two_commands_to_ranked_text(causal):
    data = ("--hf", causal / "model", "--data", causal / "train.parquet")
    code, said = init(causal, *data, "--prompt-column", "q", "--completion-column", "a")
    assert code == 0, said
    run(causal / "job" / "job.toml", str(causal / "job" / "run"))
    opened = streamfluence.open(str(causal / "job" / "run"))
    top = opened.top("asked/0")
    texts = dict(zip(sentences(24), sentences(24)[::-1], strict=True))
    shown = [tuple(each["preview"].split(" | ")) for each in top["helps"]]
    assert shown and all(texts[q] == a for q, a in shown)
    assert np.isfinite(np.asarray(opened.scores())).all()


def test_the_loss_of_the_task_is_that_of_transformers_on_the_completion(causal):
    data = ("--hf", causal / "model", "--data", causal / "train.parquet")
    init(causal, *data, "--prompt-column", "q", "--completion-column", "a")
    table = asked_of(causal)["train"]
    task = load_task("task.py", causal / "job")
    net = task.model(causal / "model")
    batch = streamfluence.data.open_reader(table, causal / "job").read(0, 4)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    losses = task.loss(task.forward(net, tensors))
    for row in range(4):
        one = {name: array[row : row + 1] for name, array in tensors.items()}
        assert torch.allclose(net(**one).loss, losses[row], atol=1e-5)


def test_what_was_found_of_the_training_is_in_the_job_with_its_source(causal):
    history = [{"learning_rate": 2e-3, "step": 5}, {"learning_rate": 1e-3, "step": 10}, {"loss": 1}]
    for step in (9, 10):
        (causal / "model" / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": history}
        text = json.dumps(state)
        (causal / "model" / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    torch.save({"learning_rate": 5.0}, causal / "model" / "training_args.bin")
    data = ("--hf", causal / "model", "--data", causal / "train.parquet")
    code, said = init(causal, *data, "--text-column", "a")
    assert code == 0 and "training_args.bin was not read" in said
    curvature = asked_of(causal)["curvature"]
    assert curvature == {}, "rate and steps decide a damping, which is another for each optimizer"
    lines = (causal / "job" / "job.toml").read_text().splitlines()
    assert any(line.startswith("# steps = 10 ") for line in lines)
    (rate,) = [line for line in lines if line.startswith("# learning_rate = 0.0015 ")]
    assert rate.endswith("# mean of 2 in trainer_state.json")


def test_of_an_adapter_only_its_own_weights_are_judged(causal):
    peft = pytest.importorskip("peft")
    net = save_causal(causal / "model")
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    adapted = peft.get_peft_model(net, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(causal / "adapter")
    data = ("--hf", causal / "model", "--data", causal / "train.parquet", "--text-column", "a")
    code, said = init(causal, *data, "--peft", causal / "adapter")
    assert code == 0, said
    assert asked_of(causal)["checkpoints"] == ["../adapter"]
    loaded = load_task("task.py", causal / "job").model(causal / "adapter")
    trainable = {name for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.allclose(loaded(input_ids=tokens).logits, adapted.eval()(input_ids=tokens).logits)


def test_a_classifier_takes_names_of_classes_from_json_lines(tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path / "model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config).eval()
    net.save_pretrained(tmp_path / "model")
    rows = [{"t": text, "y": ["bad", "good"][row % 2]} for row, text in enumerate(sentences(6))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--hf", tmp_path / "model", "--data", tmp_path / "a.jsonl", "--text-column", "t")
    assert "needs --label-column" in init(tmp_path, *data)[1]
    code, said = init(tmp_path, *data, "--label-column", "y")
    assert code == 0, said
    task = load_task("task.py", tmp_path / "job")
    reader = streamfluence.data.open_reader(
        asked_of(tmp_path)["queries"]["asked"], tmp_path / "job"
    )
    batch = streamfluence.data.to_tensors(reader.read(0, 6))
    logits, targets = task.forward(task.model(tmp_path / "model"), batch)
    assert targets.tolist() == [0, 1] * 3 and logits.shape == (6, 2)
    assert [reader.group_name(int(g)) for g in reader.groups(0, 2)] == ["bad", "good"]


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (
            lambda f: None,
            ("--text-column", "aa"),
            r"no column 'aa'; did you mean 'a'\? there are: q, a",
        ),
        (lambda f: None, (), "say which column is the text: --text-column"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            ("--text-column", "a"),
            r"holds no model\*\.safetensors; other weights may run code",
        ),
        (
            lambda f: edit(f / "config.json", auto_map={"AutoModel": "own.Net"}),
            ("--text-column", "a"),
            "names Python files of its own .* --trust-remote-code",
        ),
        (
            lambda f: edit(f / "config.json", architectures=["WhisperModel"]),
            ("--text-column", "a"),
            "holds a WhisperModel; there are tasks for ForCausalLM",
        ),
        (lambda f: (f / "config.json").unlink(), ("--text-column", "a"), "holds no config.json"),
        (lambda f: None, ("--label-column", "a", "--text-column", "a"), "--label-column is for"),
    ],
)
def test_what_no_job_can_be_made_of_is_refused_and_leaves_nothing(causal, spoil, more, message):
    spoil(causal / "model")
    data = ("--hf", causal / "model", "--data", causal / "train.parquet")
    code, said = init(causal, *data, *more)
    assert code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert not (causal / "job").exists()


def edit(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
