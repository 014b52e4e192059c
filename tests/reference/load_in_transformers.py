#!/usr/bin/env python3
"""Loads an output of lcomp with Hugging Face transformers and measures its perplexity there.

An outside check of the files that lcomp writes: other code reads them, decodes the packed weights and runs the model.
Not part of the test suite, for it needs Python with torch, transformers and compressed-tensors.

Protocol, that of `lcomp eval`: the text is tokenized whole without special tokens and cut into windows without overlap;
the loss is the mean over all tokens but the first of each window; float32 arithmetic on the stored weights.

With --lcomp the same is asked of that binary, and the exit code is 1 where the perplexities differ by more than
--tolerance.

    load_in_transformers.py out/gptq_w4 --text held-out.txt --max-windows 4 --lcomp build/release/bin/lcomp
"""
import argparse
import json
import math
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(directory, dequantize):
    options = {"dtype": torch.float32}
    if dequantize:  # decoded once while loading; by default compressed-tensors may decode in each forward pass
        from transformers import CompressedTensorsConfig
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, loading = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    # transformers fills a tensor that it does not find with random values and only warns.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading.get(kind):
            sys.exit(f"{directory}: {kind}: {sorted(map(str, loading[kind]))[:5]}")
    return model.eval()


def windows(tokenizer_directory, text, window, max_windows):
    with open(text, encoding="utf-8") as file:
        content = file.read()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    ids = tokenizer(content, return_tensors="pt", add_special_tokens=False).input_ids[0]
    count = len(ids) // window
    if max_windows:
        count = min(count, max_windows)
    if not count:
        sys.exit(f"{text}: at least one window of {window} tokens; {len(ids)} tokens")
    return ids[: count * window].view(count, window)


def perplexity(model, batches):
    loss, tokens = 0.0, 0
    with torch.inference_mode():
        for ids in batches:
            logits = model(ids[None], use_cache=False).logits[0, :-1].float()
            loss += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
            tokens += len(ids) - 1
    return math.exp(loss / tokens)


def measured_by_lcomp(options, directory):
    command = [options.lcomp, "eval", directory, "--text", options.text, "--window", str(options.window),
               "--max-windows", str(options.max_windows), "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["perplexity"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="output of `lcomp run`")
    parser.add_argument("--text", required=True, help="UTF-8 text to measure on")
    parser.add_argument("--dense", help="the dense model: its perplexity too, with its own tokenizer")
    parser.add_argument("--window", type=int, default=2048, help="tokens per window (2048)")
    parser.add_argument("--max-windows", type=int, default=0, help="windows to measure; 0 (default): all")
    parser.add_argument("--dequantize", action="store_true", help="decode the weights while loading")
    parser.add_argument("--lcomp", help="lcomp binary to compare with")
    parser.add_argument("--tolerance", type=float, default=0.005, help="largest relative difference (0.005)")
    options = parser.parse_args()

    failed = False
    for directory, dequantize in ((options.directory, options.dequantize), (options.dense, False)):
        if not directory:
            continue
        batches = windows(directory, options.text, options.window, options.max_windows)
        theirs = perplexity(load(directory, dequantize), batches)
        line = f"{directory}: {len(batches)} windows of {options.window}: transformers {theirs:.4f}"
        if options.lcomp:
            ours = measured_by_lcomp(options, directory)
            difference = abs(ours / theirs - 1)
            failed |= not difference <= options.tolerance  # NaN fails too
            line += f", lcomp {ours:.4f}, relative difference {difference:.5f}"
        print(line, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
