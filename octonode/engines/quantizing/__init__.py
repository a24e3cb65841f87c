"""Making a smaller model of a model, in a child process of its own: `python -m octonode.engines.quantizing`.

It reads one line from standard input, a JSON object with the fields of `job.Job`, and writes JSON lines to standard
output: {"type": "progress", "stage", "done", "total"} any number of times, then one {"type": "result", ...} with the
fields of `job.Made` or {"type": "error", "code", "message"}. What libraries print goes to standard error. Closing its
standard input, or ending it, cancels; what it wrote until then lies in the target folder, which is its caller's to
remove.

`job` is what is asked and given, `said` reads the lines, `child` starts and ends the process, `needs` says what can be
made with what is installed here. `gguf`, `onnx` and `safetensors` do the work and are imported in the child alone.
"""
