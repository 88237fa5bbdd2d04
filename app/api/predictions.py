"""POST /v1/predictions: class probabilities from a few labelled images, in one pass, without training."""

from typing import Any

from fastapi import APIRouter, Request

from app.answer_docs import inline_schema
from app.api.access import HouseDep, needs
from app.generation import while_connected
from app.predicting import answer
from app.prediction_forms import read_prediction
from app.schemas_recycle import PredictionBody

router = APIRouter(prefix="/v1/predictions", tags=["recycling"])

_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["support", "query"],
                    "properties": {
                        "support": {**_FILES, "description": "named label/file, or with labels"},
                        "labels": {"type": "array", "items": {"type": "string"}},
                        "query": _FILES,
                        "model": {"type": "string"},
                        "adapters": {"type": "string", "description": 'JSON: [{"ref": …, "weight": …}]'},
                        "combine": {"type": "string", "enum": ["sum", "ensemble"]},
                        "px": {"type": "integer"},
                        "distance": {"type": "string", "enum": ["euclidean", "squared"]},
                        "temperature": {"type": "number"},
                    },
                }
            },
            "application/json": {"schema": inline_schema(PredictionBody)},
        },
    }
}


@router.post("", openapi_extra=_BODY, dependencies=[needs("generate")])
async def post_prediction(house: HouseDep, request: Request) -> dict[str, Any]:
    """Classify query images by labelled ones, with a weighted set of adapters applied together or as an ensemble."""
    with house.predictor.place():
        form, pictures = await read_prediction(request, house.settings)
        return await while_connected(request, answer(house, form, pictures))
