"""Views of an experiment that MLflow's pages open: which runs, which columns, which charts.

MLflow keeps them as tags of the experiment, as the button "Save view" of its pages writes them.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Experiment

from laq.addresses import usual_uri, without_password
from laq.quantization.methods.registry import all_names
from laq.track.measures import FINETUNED, PROGRESS

NETWORKS: Final = "laq-networks"
CURVES: Final = "laq-curves"
_TAG: Final = "mlflow.sharedViewState."
_BY_NAME: Final = "tags.`mlflow.runName`"
_COLUMNS: Final = {  # with their widths in pixels
    "params.`subset`": 110, "params.`kind`": 90, "params.`method`": 85, "params.`bits`": 70,
    "metrics.`size_kib`": 85, "metrics.`top1`": 75, "metrics.`points_lost`": 95,
}  # fmt: skip
_CHARTS: Final = {
    "top1": "Restricted top-1 (%) against bits",
    "points_lost": "Points of restricted top-1 lost against bits",
    f"top1_{FINETUNED}": "Restricted top-1 (%) against bits, fine-tuned first",
    f"points_lost_{FINETUNED}": "Points of restricted top-1 lost against bits, fine-tuned first",
}
_SECTION: Final = "Methods compared"


def save_views(client: MlflowClient, experiment: Experiment) -> None:
    """Give the experiment its views, unless they are there; what somebody changed in MLflow stays."""
    views = ((NETWORKS, "Networks", _networks()), (CURVES, "Methods compared", _curves()))
    for key, name, state in views:
        written = _view(name, state, experiment.creation_time or 0)
        if (found := experiment.tags.get(_TAG + key)) != written and not _is_changed(found):
            client.set_experiment_tag(experiment.experiment_id, _TAG + key, written)


def links(experiment_id: str) -> dict[str, str]:
    """The addresses of both views below a server's, by what they show."""
    runs = f"/#/experiments/{experiment_id}/runs?viewStateShareKey="
    return {"Networks": f"{runs}{NETWORKS}", "Methods compared": f"{runs}{CURVES}&compareRunsMode=CHART"}


def where_to_look(uri: str, places: Mapping[str, str]) -> str:
    """The addresses of places below a server's, a line each, with what serves them if none does."""
    server, command = without_password(uri).rstrip("/"), ""
    if not uri.startswith("http"):
        # `mlflow run` names the usual one to what it starts.
        where = "" if uri == usual_uri() else ' --backend-store-uri "$MLFLOW_TRACKING_URI"'
        server, command = "http://127.0.0.1:5000", f" (while `mlflow ui --workers 1{where}` runs)"
    return "\n".join(f"{what}: {server}{place}{command}" for what, place in places.items())


def _networks() -> dict[str, Any]:
    """Every network as a line, whatever study it is of."""
    return {
        "searchFilter": "tags.`laq.level` = 'cell'",
        "orderByKey": _BY_NAME,
        "orderByAsc": True,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }


def _curves() -> dict[str, Any]:
    """A chart for each measure with a curve for each method of each study."""
    charts = [
        {
            "uuid": f"laq-{name}",
            "type": "LINE",
            "metricSectionId": "laq",
            "deleted": False,
            "isGenerated": False,
            "displayName": title,
            "metricKey": f"{name}/gpfq",
            "selectedMetricKeys": [f"{name}/{method}" for method in all_names()],
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "useGlobalXaxisKey": False,
            "displayPoints": True,
            "runsCountToCompare": 10,
            "lineSmoothness": 0,
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "range": {},
            "scaleType": "linear",
            "selectedXAxisMetricKey": "",
            "ignoreOutliers": False,
            "useGlobalLineSmoothing": False,
        }
        for name, title in _CHARTS.items()
    ]
    section = {"uuid": "laq", "name": _SECTION, "display": True, "isReordered": True, "deleted": False}
    section |= {"columns": 2, "cardHeight": 400}  # wide enough for the names of two methods
    return {
        "searchFilter": "tags.`laq.level` = 'study'",
        "selectedColumns": [f"metrics.`{PROGRESS}`", "metrics.`top1_float`"],
        "compareRunCharts": charts,
        "compareRunSections": [{**section, "isGenerated": False}],
        "isAccordionReordered": True,
    }


def _view(name: str, state: Mapping[str, Any], created: int) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"}
    return json.dumps(view, separators=(",", ":"))


def _is_changed(view: str | None) -> bool:
    """Whether somebody has saved other columns under the view's name."""
    if view is None:
        return False
    found = json.loads(view)
    return bool(found.get("updatedAt", found.get("createdAt")) != found.get("createdAt"))
