"""A process that imports corrupted files under a memory limit, and reports the outcome of each import."""

import json
import random
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegpt.errors import WholeGPTError
from wholegpt.interop import huggingface
from wholegpt.tokenizers import Tokenizer

GIGABYTE = 10**9
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf")),
    *("", "F32", "gelu", "\x00", "é" * 50, [], [0], [1, 2], [-1, 5], [2**62, 2**62], {}, {"a": 1}, [[[]]]),
]


def corrupt_value(value: Any, generator: random.Random) -> Any:
    """Return a JSON value with one change at any depth."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        name = generator.choice(list(value))
        action = generator.randrange(6)
        changed = dict(value)
        if action == 0:
            del changed[name]
        elif action == 1:
            changed[name + generator.choice(("x", " ", "\u0000"))] = changed.pop(name)
        elif action == 2:
            other = generator.choice(list(value))
            changed[name], changed[other] = changed[other], changed[name]
        else:
            changed[name] = corrupt_value(value[name], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.7:
        index = generator.randrange(len(value))
        return [*value[:index], corrupt_value(value[index], generator), *value[index + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and generator.random() < 0.6:
        return value + generator.choice((-64, -4, -1, 1, 4, 64, 2**20, 2**40))
    if isinstance(value, str) and generator.random() < 0.3:
        return generator.choice(
            ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL", "F8_E4M3", "gpt2", "qwen3")
        )
    return generator.choice(NASTY)


def corrupt_text(text: str, generator: random.Random) -> str:
    """Return JSON text corrupted as a value, as characters, or by deep nesting."""
    action = generator.randrange(10)
    if action < 7:
        return json.dumps(corrupt_value(json.loads(text), generator))
    if action == 7:
        return text[: generator.randrange(len(text))]
    if action == 8:
        index = generator.randrange(len(text))
        return text[:index] + generator.choice('{}[]",:\\0\x00eE-\ud800'[:-1]) + text[index + 1 :]
    depth = generator.choice((100, 10_000, 200_000))
    return generator.choice(("[", '{"a":')) * depth


def corrupt_safetensors(content: bytes, generator: random.Random) -> bytes:
    """Corrupt a safetensors file: the header's length, the header, or the data."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    action = generator.randrange(10)
    if action == 0:
        length = generator.choice((0, 1, length - 1, length + 1, 10**8, 10**11, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + data
    if action == 1:
        return content[: generator.randrange(len(content))]
    if action == 2:
        return content + bytes(generator.randrange(1, 100))
    changed = corrupt_text(header.decode(), generator).encode()
    changed += b" " * (-len(changed) % 8)
    return struct.pack("<Q", len(changed)) + changed + data


def read_by_definition(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file by the format's definition, as the reference for a correct load."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(data[start:end]), dtype=types[entry["dtype"]])
            tensors[name] = flat.view(entry["shape"]).float()
    return tensors


def is_correct(folder: Path, loaded: dict[str, Tensor]) -> bool:
    """Return whether the loaded elements are exactly those of the file, in any arrangement."""

    def elements(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors.values()]).sort().values

    expected: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        expected |= read_by_definition(path)
    return torch.equal(elements(expected), elements(loaded))


def split_in_two(export: Path) -> None:
    """Split a single tensor file into two with an index."""
    import safetensors.torch

    tensors = list(safetensors.torch.load_file(export / "model.safetensors").items())
    (export / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-{number}.safetensors"
        safetensors.torch.save_file(dict(part), export / name)
        weight_map |= dict.fromkeys((tensor for tensor, _ in part), name)
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def corrupted(path: Path, content: bytes, generator: random.Random) -> bytes:
    """Return the content of an export's file, corrupted according to its type."""
    if path.suffix == ".safetensors":
        return corrupt_safetensors(content, generator)
    return corrupt_text(content.decode(), generator).encode(errors="surrogatepass")


def main() -> None:
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    files = {path.name: path.read_bytes() for path in (folder / "export").iterdir()}
    huggingface.read(folder / "export")  # load everything that a first call imports
    before = peak_bytes()
    allowed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + GIGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    target = folder / "corrupted"
    target.mkdir()
    parts = [name for name in files if name.startswith("model") or name in ("config.json", "tokenizer.json")]
    outcome: dict[str, Any] = {"refused": 0, "loaded": 0, "wrong": [], "slowest_seconds": 0.0}
    for number in range(count):
        generator = random.Random(f"{seed} {number}")
        chosen = set(generator.sample(sorted(parts), generator.choice((1, 1, 2))))
        for name, content in files.items():
            changed = corrupted(Path(name), content, generator) if name in chosen else content
            (target / name).write_bytes(changed)
        started = time.perf_counter()
        try:
            _, tensors = huggingface.read(target)
            Tokenizer.load(target / "tokenizer.json")
            outcome["loaded"] += 1
            if not is_correct(target, tensors):
                outcome["wrong"].append(f"{number}: other elements than in the file")
        except WholeGPTError as error:
            outcome["refused"] += 1
            if "\n" in str(error):
                outcome["wrong"].append(f"{number}: a message of several lines: {error}")
        except BaseException as error:
            outcome["wrong"].append(f"{number}: {type(error).__name__}: {error}")
        outcome["slowest_seconds"] = max(outcome["slowest_seconds"], time.perf_counter() - started)
    outcome["peak_bytes_more"] = peak_bytes() - before
    print(json.dumps(outcome))


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
