"""vLLM's server as its build for CPUs can be given other weights: they stay in the layout in which they are loaded.

Its processes import this file anew, so that it holds in all of them.
"""

import runpy

from vllm import _custom_ops

_custom_ops._supports_onednn = False

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
