"""The Podman engine: the only module that imports podman-py.

A private `podman system service` (`sandbox.engine.service`) is started, replaced when it dies, and stopped by
`close()`. Requests go through podman-py's API client. Containers are created from a full JSON spec of ours: podman-py's
own `create()` drops or mis-routes several settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sandbox.engine.failed_request import never_sent, timed_out
from sandbox.engine.hidden_layers import complains_of_one, take_away_hidden_layers
from sandbox.engine.program import last_line, missing_podman, reaching_environment
from sandbox.engine.protocol import EXPORT_LABEL, ContainerRecord, EngineInfo, ImageRecord
from sandbox.engine.registry_advice import registry_advice
from sandbox.engine.service import PodmanService, remove_dead_sockets
from sandbox.errors import BuildFailed, EngineUnavailable, ImageUnavailable, NotEnforceable, NotFound, SandboxError

if TYPE_CHECKING:
    from podman.api.client import APIClient

REQUEST_TIMEOUT_S = 60.0
# What Podman does in less than a second unless the host is in great trouble, or Podman hangs.
SHORT_TIMEOUT_S = 30.0
# A service that does not answer even a ping in so long hangs.
PING_TIMEOUT_S = 5.0
PULL_TIMEOUT_S = 1_800.0
# What may be asked again when the service died over it.
REPEATABLE = ("get", "delete")


class PodmanEngine:
    """Rootless Podman through its REST service; see `sandbox.engine.protocol.Engine` for the methods."""

    def __init__(
        self,
        info: EngineInfo,
        *,
        runtime_dir: Path,
        short_timeout_s: float = SHORT_TIMEOUT_S,
        ping_timeout_s: float = PING_TIMEOUT_S,
    ) -> None:
        """Start the private service; it becomes ready while the caller goes on.

        One that dies or hangs is replaced when it is needed.

        A call that should be short, and has no answer after `short_timeout_s`, is given up; where a ping has none after
        `ping_timeout_s` either, the service hangs.
        """
        self._info = info
        self._short_timeout_s = short_timeout_s
        self._ping_timeout_s = ping_timeout_s
        self._runtime_dir = runtime_dir
        remove_dead_sockets(runtime_dir)
        self._lock = threading.Lock()  # guards the three below
        self._service = PodmanService(info.runtime_path, runtime_dir=runtime_dir)
        self._api: APIClient | None = None
        self._closed = False

    def _ready_api(self, *, failed: APIClient | None = None, hung: bool = False) -> APIClient:
        """Return a client of the service, once that is ready; of a new one where it died.

        `failed` is a client on which a request has just failed. It is returned again when its service lives, and is not
        `hung`.
        """
        with self._lock:
            if self._closed:
                raise EngineUnavailable("the engine is closed", hint="its program is about to end")
            died = failed is not None and failed is self._api and (hung or not self._service.listens())
            if died or self._service.ended():
                self._stop(hung=hung)
                self._service = PodmanService(self._info.runtime_path, runtime_dir=self._runtime_dir)
            if self._api is None:
                # Imported late: it takes longer than Podman's own start, and both go on at the same time.
                from podman.api.client import APIClient

                self._service.wait_ready()
                take_away_hidden_layers(self._info.graph_root)
                self._api = APIClient(base_url=f"unix://{self._service.socket}", timeout=REQUEST_TIMEOUT_S)
            return self._api

    def _stop(self, *, hung: bool = False) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None
        self._service.stop(at_once=hung)

    def _hangs(self, api: APIClient) -> bool:
        """Tell whether the service answers nothing; one that is slow, or waits for a lock, still answers a ping."""
        from podman.errors import PodmanError

        try:
            api.get("/_ping", timeout=self._ping_timeout_s)
        except (OSError, PodmanError) as error:
            return timed_out(error)
        return False

    def _short(self, method: str, path: str, **options: Any) -> Any:
        """Send a request that should be answered soon; see `_call`."""
        return self._call(method, path, timeout_s=self._short_timeout_s, **options)

    def _call(self, method: str, path: str, *, timeout_s: float = REQUEST_TIMEOUT_S, **options: Any) -> Any:
        """Send one request; return the response whatever its status. Raises `EngineUnavailable` only.

        When the service died or hangs, the request goes to a new one, once; but not one that may have been carried out
        in part. One that failed because of a hidden layer is repeated without it: Podman had not begun with it.
        """
        import requests
        from podman.errors import PodmanError

        api = self._ready_api()
        try:
            response = getattr(api, method)(path, timeout=timeout_s, **options)
            if response.status_code < 500 or hasattr(options.get("data"), "read"):
                return response
            if not (complains_of_one(response.text) and take_away_hidden_layers(self._info.graph_root)):
                return response
            return getattr(api, method)(path, timeout=timeout_s, **options)
        except (requests.RequestException, PodmanError, OSError) as error:
            reason: Exception = error
        hung = timed_out(reason) and self._hangs(api)
        repeatable = method in REPEATABLE or never_sent(reason)
        if hung or repeatable:
            another = self._ready_api(failed=api, hung=hung)
            if another is not api and repeatable:
                try:
                    return getattr(another, method)(path, timeout=timeout_s, **options)
                except (requests.RequestException, PodmanError, OSError) as error:
                    reason = error
        raise EngineUnavailable(
            f"Podman's service did not answer {method.upper()} {path}: {reason}",
            hint="try again; `sandbox doctor` tells more",
        ) from reason

    def _expect(self, response: Any, *statuses: int, otherwise: type[SandboxError], doing: str, hint: str = "") -> Any:
        if response.status_code in statuses:
            return response
        reason = reason_of(response)
        hint = self._space_hint(reason) or hint
        kind = EngineUnavailable if response.status_code >= 500 and otherwise is NotFound else otherwise
        raise kind(f"Podman could not {doing}: {reason}", hint=hint or "run `sandbox doctor`")

    def _space_hint(self, reason: str, *others: Path) -> str:
        places = " and ".join(map(str, (self._info.graph_root, *others)))
        return f"free some space below {places}" if "no space left on device" in reason.lower() else ""

    def _program(self, *arguments: str, temporary: Path, otherwise: type[SandboxError], doing: str) -> str:
        """Run the podman program for what the service has no request for; return what it printed.

        It ends with us, and its temporary files are below `temporary`.
        """
        command = [
            "setpriv", "--pdeathsig", "TERM", "podman", "--runtime", self._info.runtime_path, "--log-level", "error",
            *arguments,
        ]  # fmt: skip # a command line
        try:
            answer = subprocess.run(
                command,
                env={**reaching_environment(), "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PULL_TIMEOUT_S,
                check=False,
                cwd="/",
            )
        except FileNotFoundError:
            raise missing_podman() from None
        except subprocess.TimeoutExpired:
            raise otherwise(
                f"Podman could not {doing} within {PULL_TIMEOUT_S:g} s", hint="look for a hung podman process"
            ) from None
        if answer.returncode != 0:
            reason = last_line(answer.stderr)
            hint = self._space_hint(reason, temporary) or registry_advice(reason) or "run `sandbox doctor`"
            raise otherwise(f"Podman could not {doing}: {reason}", hint=hint)
        return answer.stdout

    def info(self) -> EngineInfo:
        """Return what Podman said of itself when the host was probed."""
        return self._info

    def create(self, spec: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Create a container; see the protocol."""
        response = self._short(
            "post", "/containers/create", data=json.dumps(spec), headers={"Content-Type": "application/json"}
        )
        # Podman 4 answers 500 for an absent image, 5 answers 404; both carry this cause.
        missing = response.status_code == 404 or "image not known" in reason_of(response)
        body = self._expect(
            response, 201, otherwise=ImageUnavailable if missing else NotEnforceable, doing="create the sandbox"
        ).json()
        return body["Id"], tuple(body.get("Warnings") or ())

    def start(self, container_id: str) -> None:
        """Start a container; see the protocol."""
        response = self._short("post", f"/containers/{container_id}/start")
        self._expect(response, 204, 304, otherwise=NotEnforceable, doing="start the sandbox")

    def inspect(self, container_id: str) -> ContainerRecord:
        """Describe a container; see the protocol."""
        response = self._short("get", f"/containers/{container_id}/json")
        body = self._expect(response, 200, otherwise=NotFound, doing=f"find the container {container_id[:12]}").json()
        path = body.get("OCIConfigPath")
        return ContainerRecord(
            id=body["Id"],
            labels=dict(body["Config"].get("Labels") or {}),
            running=bool(body["State"]["Running"]),
            pid=int(body["State"].get("Pid") or 0),
            oci_config_path=Path(path) if path else None,
        )

    def remove(self, container_id: str) -> None:
        """Remove a container; see the protocol."""
        # 409 and 500 "removing" come when conmon's own clean-up removes the same container at the same moment.
        for attempt in range(20):
            response = self._delete(container_id)
            if response.status_code in (200, 204, 404):
                return
            time.sleep(0.02 * (attempt + 1))
        self._expect(
            self._delete(container_id),
            200,
            204,
            404,
            otherwise=EngineUnavailable,
            doing=f"remove the container {container_id[:12]}",
        )

    def _delete(self, container_id: str) -> Any:
        params = {"force": "true", "timeout": 0, "v": "true"}
        return self._short("delete", f"/containers/{container_id}", params=params)

    def containers(self, label: str) -> list[ContainerRecord]:
        """List containers by label; see the protocol."""
        response = self._short(
            "get", "/containers/json", params={"all": "true", "filters": json.dumps({"label": [label]})}
        )
        rows = self._expect(response, 200, otherwise=EngineUnavailable, doing="list containers").json()
        return [
            ContainerRecord(
                id=row["Id"],
                labels=dict(row.get("Labels") or {}),
                running=row.get("State") == "running",
                pid=int(row.get("Pid") or 0),
                oci_config_path=None,
            )
            for row in rows or []
        ]

    def image(self, name: str) -> ImageRecord:
        """Describe an image; see the protocol."""
        response = self._short("get", f"/images/{quote(name, safe='')}/json")
        body = self._expect(response, 200, otherwise=ImageUnavailable, doing=f"find the image {name}").json()
        return image_record(body)

    def images(self) -> list[ImageRecord]:
        """List named images; see the protocol."""
        response = self._call("get", "/images/json")
        rows = self._expect(response, 200, otherwise=EngineUnavailable, doing="list images").json()
        return [self.image(row["Id"]) for row in rows or [] if row.get("Names") or row.get("RepoTags")]

    def pull(self, reference: str) -> ImageRecord:
        """Pull an image; see the protocol."""
        wanted = {"reference": reference, "policy": "missing", "quiet": "true"}
        response = self._call("post", "/images/pull", params=wanted, timeout_s=PULL_TIMEOUT_S)
        lines = [json.loads(line) for line in response.text.splitlines() if line.startswith("{")]
        reason = next((str(line["error"]) for line in lines if line.get("error")), "")
        if response.status_code != 200 or reason:
            reason = reason or reason_of(response)
            raise ImageUnavailable(f"{reference} can't be pulled: {reason}", hint=registry_advice(reason))
        return self.image(reference)

    def load(self, archive: Path) -> ImageRecord:
        """Load an archive of our own making; see the protocol."""
        with archive.open("rb") as body:
            response = self._call("post", "/images/load", data=body, timeout_s=PULL_TIMEOUT_S)
        names = self._expect(response, 200, otherwise=ImageUnavailable, doing=f"load {archive.name}").json()["Names"]
        return self.image(names[0])

    def add_image(self, archive: Path, name: str) -> ImageRecord:
        """Add an image of our own making; see the protocol."""
        # The service would copy the archive once more before it reads it.
        printed = self._program(
            "pull",
            "--quiet",
            f"docker-archive:{archive}",
            temporary=archive.parent,
            otherwise=BuildFailed,
            doing=f"add {name}",
        )
        return self.image(printed.strip())

    def push(self, name: str, destination: str, *, work_dir: Path) -> str:
        """Send an image to a registry; see the protocol."""
        # Without --tls-verify, Podman asks registries.conf(5) whether this registry is insecure, as it does for a pull.
        with tempfile.TemporaryDirectory(dir=work_dir, prefix="push-") as place:
            digest = Path(place, "digest")
            self._program(
                "push", "--quiet", "--format", "v2s2", "--digestfile", str(digest), name, f"docker://{destination}",
                temporary=Path(place), otherwise=ImageUnavailable, doing=f"push {name} to {destination}",
            )  # fmt: skip # a command line
            return digest.read_text().strip()

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Name an image; see the protocol."""
        response = self._call(
            "post", f"/images/{quote(image_id, safe='')}/tag", params={"repo": repository, "tag": tag}
        )
        self._expect(response, 201, otherwise=ImageUnavailable, doing=f"name an image {repository}:{tag}")

    def remove_image(self, name: str, *, force: bool = False) -> bool:
        """Remove an image; see the protocol."""
        response = self._call("delete", f"/images/{quote(name, safe='')}", params={"force": str(force).lower()})
        self._expect(response, 200, 404, 409, otherwise=EngineUnavailable, doing=f"remove the image {name}")
        in_use: bool = response.status_code == 409
        return not in_use

    def export_filesystem(self, image: str) -> Iterator[bytes]:
        """Stream an image's files; see the protocol."""
        container_id, _ = self.create(
            {
                "image": image,
                "labels": {EXPORT_LABEL: str(os.getpid())},
                "command": ["/none"],
                "entrypoint": [],
                "netns": {"nsmode": "none"},
                "image_volume_mode": "ignore",
            }
        )
        try:
            response = self._call("get", f"/containers/{container_id}/export", stream=True, timeout_s=PULL_TIMEOUT_S)
            with contextlib.closing(response):
                self._expect(response, 200, otherwise=ImageUnavailable, doing=f"read the files of {image}")
                yield from self._streamed(response)
        finally:
            self.remove(container_id)

    def _streamed(self, response: Any) -> Iterator[bytes]:
        import requests

        try:
            yield from response.iter_content(chunk_size=1 << 20)
        except requests.RequestException as error:
            raise EngineUnavailable(f"Podman's answer broke off: {error}", hint="run `sandbox doctor`") from error

    def close(self) -> None:
        """Stop the service and remove its socket."""
        with self._lock:
            self._closed = True
            self._stop()


def reason_of(response: Any) -> str:
    """Return the reason that Podman gave with an error response."""
    try:
        body = response.json()
        return last_line(str(body.get("cause") or "") + "\n" + str(body.get("message") or body))
    except ValueError:
        return last_line(response.text[:2_000])


def image_record(body: dict[str, Any]) -> ImageRecord:
    """Return the parts of an image description that we use."""
    config = body.get("Config") or {}
    return ImageRecord(
        id=body["Id"],
        digest=body.get("Digest") or "",
        names=tuple(body.get("RepoTags") or ()),
        size_bytes=int(body.get("Size") or 0),
        env=tuple(config.get("Env") or ()),
        labels=dict(config.get("Labels") or body.get("Labels") or {}),
        annotations=dict(body.get("Annotations") or {}),
        architecture=body.get("Architecture") or "",
        layers=tuple((body.get("RootFS") or {}).get("Layers") or ()),
    )
