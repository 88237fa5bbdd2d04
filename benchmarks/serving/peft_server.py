"""PEFT behind FastAPI, as people write it: all adapters loaded, one lock, one adapter at a time, streamed answers.

    python -m benchmarks.serving.peft_server --adapters FOLDER --port 9000 [--resident 20] [--threads 1]

POST /v1/completions {model, prompt, max_tokens} answers with OpenAI's server-sent events. Beyond `resident` adapters
the least recently used one is deleted before another is loaded, as one must with more adapters than memory.
"""

import argparse
import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from peft import PeftModel
from pydantic import BaseModel
from transformers import AsyncTextIteratorStreamer, AutoModelForCausalLM, AutoTokenizer

from benchmarks.measuring import base_folder


class Asked(BaseModel):
    """What the load script sends."""

    model: str
    prompt: str
    max_tokens: int


class OneAtATime:
    """A PeftModel that switches to the adapter of each request."""

    def __init__(self, adapters: Path, resident: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base_folder())
        self._base: Any = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32).eval()
        self._model: Any = None
        self._adapters, self._most = adapters, resident
        self._resident: OrderedDict[str, None] = OrderedDict()
        self._turn = asyncio.Lock()

    async def stream(self, asked: Asked) -> AsyncIterator[str]:
        """The answer's pieces; waits for its turn."""
        async with self._turn:
            await asyncio.to_thread(self._switch, asked.model.rpartition("/")[2])
            inputs = self.tokenizer(asked.prompt, return_tensors="pt")
            pieces: Any = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True)
            arguments = {"max_new_tokens": asked.max_tokens, "min_new_tokens": asked.max_tokens, "do_sample": False}
            work = asyncio.create_task(asyncio.to_thread(self._model.generate, **inputs, **arguments, streamer=pieces))
            async for piece in pieces:
                yield piece
            await work

    def _switch(self, name: str) -> None:
        if name not in self._resident:
            folder = self._adapters / name
            if self._model is None:
                self._model = PeftModel.from_pretrained(self._base, folder, adapter_name=name).eval()
            else:
                if len(self._resident) >= self._most:
                    self._model.delete_adapter(self._resident.popitem(last=False)[0])
                self._model.load_adapter(folder, adapter_name=name)
        self._resident[name] = None
        self._resident.move_to_end(name)
        self._model.set_adapter(name)


def create_app(server: OneAtATime) -> FastAPI:
    """The HTTP side."""
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/completions")
    def completions(asked: Asked) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            async for piece in server.stream(asked):
                yield f"data: {json.dumps({'choices': [{'text': piece}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--resident", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    uvicorn.run(create_app(OneAtATime(args.adapters, args.resident)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
