"""The four examples of the user's description, word for word, on data made here, under the policy `default`.

The libraries come from the package index that this host is set up for; later sessions find them installed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from sandbox.index.pip_config import host_certificates
from sandbox.inside.harness.compiling import compile_program
from tests.command import document, environment, left_behind
from tests.e2e.libraries import PICTURES, TABLES, WEB
from tests.e2e.website import KEY, PAGE, ROWS, Website, own_certificate, website
from tests.waiting import SLOWER

EVERYDAY = "default"
EXAMPLES = Path(__file__).parent / "examples"
SHAPES = [(20, 25, 60, 60), (30, 120, 170, 40), (140, 30, 60, 60)]  # x, y, width, height
BLUR_PX = 4

Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_behind() == []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Give a function that runs one script with libraries and a payload, and returns what --json prints."""

    def run_script(
        script: Path, libraries: tuple[str, ...], payload: object, *, policy: str | Path = EVERYDAY, **variables: str
    ) -> dict[str, Any]:
        data = tmp_path / "payload.json"
        if policy == EVERYDAY and SLOWER > 1:
            policy = tmp_path / "slower.toml"
            policy.write_text(f'extends = "{EVERYDAY}"\n[limits]\ntimeout_s = {30.0 * SLOWER}\n')
        data.write_text(json.dumps(payload))
        with_libraries = [argument for library in libraries for argument in ("--with", library)]
        found = document(
            "run", script, *with_libraries, "--input", f"@{data}", "--topic", "north", "--policy", policy,
            env=environment(**variables),
        )  # fmt: skip # a command line
        assert found.get("outcome") == "succeeded", found
        assert found["stderr"] == "", "a library warned of what it found in the sandbox"
        return found

    return run_script


def logged(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(record["level"], record["message"]) for record in found["logs"]]


def saved(found: dict[str, Any]) -> dict[str, bytes]:
    return {file["name"]: base64.b64decode(file["content_base64"]) for file in found["files"]}


@pytest.mark.host_only
@pytest.mark.parametrize(
    ("name", "digest", "first_line"),
    [
        ("iot", "5a66d770f9168de5beb7228afde26a057926219b3dec037d1dc0d86c9ac90b6a", "import pandas as pd"),
        ("vision", "228c28df01ee6d4ccbefa864e54a3f332e214e6457c3b7772769db5f1e62af07", "import cv2"),
        ("ml", "a760d437c6ccb7c35a744f2cae61bc377b408e77ecc9b1e810c164b35169b0d5", "import pandas as pd"),
        ("api", "6de5e475de7663a4df01caa3675a2b7cc2b6b3fc01adcea0c24c88a927fd73aa", "import requests"),
    ],
)
def test_an_example_is_the_description_s_word_for_word(name: str, digest: str, first_line: str) -> None:
    code = (EXAMPLES / f"{name}.py").read_text()
    assert hashlib.sha256(code.encode()).hexdigest() == digest, "the examples are quoted: nobody edits them"
    assert code.startswith(f"{first_line}\n")
    compile_program(code, f"{name}.py")


# ---- example 1: sensor readings


def readings() -> list[dict[str, Any]]:
    """Return two days of readings; number 17 is far too hot."""
    rows = [
        {
            "timestamp": f"2026-03-{1 + n // 24:02d}T{n % 24:02d}:00:00",
            "temperature": 20 + n % 5 / 2,
            "humidity": 40 + n % 7,
        }
        for n in range(48)
    ]
    rows[17]["temperature"] = 55.5
    return rows


def test_example_1_finds_the_one_reading_that_stands_out(run: Run) -> None:
    rows = readings()
    found = run(EXAMPLES / "iot.py", TABLES, rows)
    mean = sum(row["temperature"] for row in rows) / len(rows)
    assert found["result"]["anomalies"] == [rows[17]]
    assert found["result"]["statut"] == "analysé"
    assert found["result"]["statistiques"] == {
        "temperature_moyenne": pytest.approx(mean),
        "humidite_max": 46,
        "nb_mesures": 48,
        "periode": "2026-03-01T00:00:00 à 2026-03-02T23:00:00",
    }
    assert found["output_topic"] == "iot/analysis/north"
    assert logged(found) == [
        ("info", "Analyse des données IoT démarrée"),
        ("info", "Analyse terminée: 1 anomalies détectées"),
    ]
    (history,) = saved(found).values()
    assert json.loads(history)["nb_mesures"] == {"0": 48}


@pytest.mark.host_only
def test_example_1_refuses_what_is_no_list(run: Run) -> None:
    found = run(EXAMPLES / "iot.py", TABLES, {"temperature": 20})
    assert found["result"] == {"erreur": "Format de données invalide"}
    assert logged(found)[-1] == ("error", "Erreur: données non conformes")


# ---- example 2: a picture


@pytest.fixture(scope="module")
def picture() -> str:
    """Return a JPEG with three shapes, in base64."""
    image = Image.new("RGB", (240, 180), (245, 245, 245))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 25, 80, 85), fill=(60, 60, 60))
    draw.ellipse((140, 30, 200, 90), fill=(30, 80, 180))
    draw.rectangle((30, 120, 200, 160), fill=(170, 40, 40))
    drawn = io.BytesIO()
    image.save(drawn, "JPEG", quality=95)
    return base64.b64encode(drawn.getvalue()).decode()


def test_example_2_finds_the_shapes_that_were_drawn(run: Run, picture: str) -> None:
    found = run(EXAMPLES / "vision.py", PICTURES, {"image_data": picture})
    result = found["result"]
    assert result["resolution"] == {"width": 240, "height": 180}
    assert result["objets_detectes"] == len(SHAPES)
    boxes = sorted(
        (each["position"]["x"], each["position"]["y"], each["taille"]["width"], each["taille"]["height"])
        for each in result["details_objets"]
    )
    for box, shape in zip(boxes, SHAPES, strict=True):
        assert box == pytest.approx(shape, abs=BLUR_PX)
    files = saved(found)
    assert files["input_image.jpg"] == base64.b64decode(picture)
    assert json.loads(files["analysis_result.json"]) == result
    assert found["output_topic"] == "vision/analysis/north"
    assert found["additional_data"]["algorithme"] == "opencv_contours"
    assert ("info", "Analyse terminée: 3 objets détectés") in logged(found)


@pytest.mark.host_only
def test_example_2_marks_the_objects_in_the_picture_that_it_returns(run: Run, picture: str) -> None:
    marked = run(EXAMPLES / "vision.py", PICTURES, {"image_data": picture})["result"]["image_analysee"]
    assert base64.b64decode(marked).startswith(b"\xff\xd8\xff")
    # Green frames lie around the shapes now: seen again, each object is larger.
    again = run(EXAMPLES / "vision.py", PICTURES, {"image_data": marked})["result"]
    assert again["objets_detectes"] == len(SHAPES)
    assert min(each["taille"]["height"] for each in again["details_objets"]) > min(height for *_, height in SHAPES)


@pytest.mark.host_only
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"image_data": base64.b64encode(b"no picture").decode()}, "Image non valide"),
        ({"other": 1}, "Données image manquantes"),
    ],
)
def test_example_2_says_what_is_wrong_with_its_input(run: Run, payload: object, reason: str) -> None:
    found = run(EXAMPLES / "vision.py", PICTURES, payload)
    assert found["result"] == {"erreur": reason}
    assert logged(found)[-1][0] == "error"


# ---- example 3: a model


def labelled_rows() -> list[dict[str, float]]:
    """Return a table whose target follows from `a` and `b`; `noise` says nothing."""
    chance = random.Random(42)
    rows = []
    for number in range(150):
        target = number % 2
        rows.append(
            {
                "a": chance.gauss(4 * target, 1),
                "b": chance.gauss(-3 * target, 1),
                "noise": chance.random(),
                "target": target,
            }
        )
    return rows


def test_example_3_learns_and_predicts(run: Run) -> None:
    new = [{"a": 0.1, "b": 0.2, "noise": 0.5}, {"a": 4.2, "b": -3.1, "noise": 0.5}]
    found = run(EXAMPLES / "ml.py", TABLES, {"training_data": labelled_rows(), "prediction_data": new})
    result = found["result"]
    assert result["model_performance"]["accuracy"] > 0.9
    assert result["model_performance"]["detailed_report"]["macro avg"]["support"] == 30
    importance = result["model_performance"]["feature_importance"]
    assert min(importance, key=importance.__getitem__) == "noise"
    assert sum(importance.values()) == pytest.approx(1)
    assert result["training_info"] == {
        "samples_train": 120,
        "samples_test": 30,
        "features_used": ["a", "b", "noise"],
    }
    assert [each["prediction"] for each in result["predictions"]] == [0, 1]
    assert all(each["confidence"] > 0.9 for each in result["predictions"])
    files = saved(found)
    assert json.loads(files["ml_results.json"]) == result
    assert files["model_info.txt"].startswith(b"Accuracy: ")
    assert found["output_topic"] == "ml/model/north"
    assert found["additional_data"]["model_saved"] == "/app/trained_model.pkl"
    assert logged(found)[1] == ("info", "Dataset: 150 échantillons, 3 features")


@pytest.mark.host_only
def test_example_3_says_what_is_missing(run: Run) -> None:
    found = run(EXAMPLES / "ml.py", TABLES, {"rows": []})
    assert found["result"] == {"erreur": "Données d'entraînement manquantes"}


# ---- example 4: an API and a page


def configuration(base_url: str) -> dict[str, Any]:
    return {
        "api_config": {
            "base_url": base_url,
            "api_key": KEY,
            "api_endpoints": ["measurements", "missing"],
            "scraping_urls": [{"url": f"{base_url}/news", "selector": "h2"}],
        }
    }


def allowing(place: Path, *rules: str, addresses: tuple[str, ...] = ("127.0.0.1",)) -> Path:
    """Write a policy that lets a run reach these hosts."""
    path = place / "web.toml"
    path.write_text(
        'extends = "default"\n[network]\nmode = "allowlist"\n'
        f"allow = {json.dumps(rules)}\nallow_addresses = {json.dumps(addresses)}\n"
        f"[limits]\ntimeout_s = {30.0 * SLOWER}\n"
    )
    return path


@pytest.fixture
def plain() -> Iterator[Website]:
    with website() as server:
        yield server


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[Website, str]]:
    """Give a website with a certificate of its own, and a bundle that has it beside what this host trusts."""
    context, certificate = own_certificate(tmp_path)
    bundle = tmp_path / "bundle.pem"
    trusted = host_certificates()
    bundle.write_bytes((trusted.read_bytes() + b"\n" if trusted else b"") + certificate.read_bytes())
    with website(context) as server:
        yield server, os.fspath(bundle)


def collected_everything(found: dict[str, Any], base_url: str) -> None:
    """Check what the example gives when it reaches the website."""
    result = found["result"]
    headings = ["First news", "Second  piece of news"]
    assert all(heading in PAGE for heading in headings)
    page = [{"text": text, "tag": "h2", "url_source": f"{base_url}/news"} for text in headings]
    assert result["status"] == "success"
    assert result["data"] == [*ROWS, *page]
    assert result["statistics"]["total_records"] == 4
    assert result["statistics"]["total_words"] == 6
    assert set(saved(found)) == {"collected_data.json", "collection_stats.json"}
    assert found["output_topic"] == "data/external/north"
    assert ("info", "API measurements: 2 éléments récupérés") in logged(found)
    assert ("warning", "Erreur API missing: 404") in logged(found)
    assert ("info", "Collection terminée: 4 éléments traités") in logged(found)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("localhost", marks=pytest.mark.host_only)])
def test_example_4_collects_from_a_server_that_the_policy_allows(
    run: Run, plain: Website, tmp_path: Path, host: str
) -> None:
    policy = allowing(tmp_path, f"{host}:{plain.port}", addresses=("127.0.0.1", "::1"))
    base_url = f"http://{host}:{plain.port}"
    found = run(EXAMPLES / "api.py", WEB, configuration(base_url), policy=policy)
    collected_everything(found, base_url)
    assert plain.asked == [("/measurements", f"Bearer {KEY}"), ("/missing", f"Bearer {KEY}"), ("/news", None)]
    assert [(entry["host"], entry["allowed"]) for entry in found["egress"]] == [(host, True)] * 3


@pytest.mark.host_only
@pytest.mark.embedded_only
def test_example_4_collects_over_tls_from_a_server_that_this_host_trusts(
    run: Run, encrypted: tuple[Website, str], tmp_path: Path
) -> None:
    server, bundle = encrypted
    policy = allowing(tmp_path, f"localhost:{server.port}", addresses=("127.0.0.1", "::1"))
    base_url = f"https://localhost:{server.port}"
    found = run(EXAMPLES / "api.py", WEB, configuration(base_url), policy=policy, PIP_CERT=bundle)
    collected_everything(found, base_url)


@pytest.mark.host_only
def test_example_4_does_not_trust_a_server_that_this_host_does_not(
    run: Run, encrypted: tuple[Website, str], tmp_path: Path
) -> None:
    server, _ = encrypted
    policy = allowing(tmp_path, f"localhost:{server.port}", addresses=("127.0.0.1", "::1"))
    found = run(EXAMPLES / "api.py", WEB, configuration(f"https://localhost:{server.port}"), policy=policy)
    assert "CERTIFICATE_VERIFY_FAILED" in found["result"]["erreur"]
    assert server.asked == []


@pytest.mark.host_only
def test_example_4_reaches_nothing_under_the_policy_default(run: Run, plain: Website) -> None:
    found = run(EXAMPLES / "api.py", WEB, configuration(f"http://127.0.0.1:{plain.port}"))
    assert found["result"]["erreur"].startswith("Erreur réseau: ")
    assert logged(found)[-1][0] == "error"
    assert plain.asked == []


@pytest.mark.host_only
def test_example_4_is_told_why_another_port_is_refused(run: Run, plain: Website, tmp_path: Path) -> None:
    policy = allowing(tmp_path, "127.0.0.1:1")
    found = run(EXAMPLES / "api.py", WEB, configuration(f"http://127.0.0.1:{plain.port}"), policy=policy)
    assert ("warning", "Erreur API measurements: 403") in logged(found)
    assert found["result"]["status"] == "no_data"
    reasons = {(entry["allowed"], entry["reason"]) for entry in found["egress"]}
    assert reasons == {(False, f"127.0.0.1:{plain.port} is not in the policy's network.allow")}
    assert plain.asked == []


@pytest.mark.host_only
@pytest.mark.parametrize(
    ("allowed", "addresses", "reason"),
    [
        ("localhost:1", ("127.0.0.1", "::1"), "is not in the policy's network.allow"),
        ("localhost:PORT", (), "is an address of this host, not in the policy's network.allow_addresses"),
    ],
)
def test_example_4_is_told_why_a_tunnel_is_refused(
    run: Run, encrypted: tuple[Website, str], tmp_path: Path, allowed: str, addresses: tuple[str, ...], reason: str
) -> None:
    server, bundle = encrypted
    policy = allowing(tmp_path, allowed.replace("PORT", str(server.port)), addresses=addresses)
    base_url = f"https://localhost:{server.port}"
    found = run(EXAMPLES / "api.py", WEB, configuration(base_url), policy=policy, PIP_CERT=bundle)
    error = found["result"]["erreur"]
    assert error.startswith("Erreur réseau: ")
    assert "403 localhost:" in error
    assert reason in error
    assert found["egress"][0]["reason"].endswith(reason)
    assert server.asked == []
