"""Builds what a Containerfile says, step by step, in folders; an instruction that it does not know is an error.

Knows the file's language, and of the machine only how to run a step. Nothing is cached but what the caller keeps.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.peers.clean_root.enter import Entry

PATH: Final = "/usr/local/bin:/usr/bin:/bin"


class StepFailed(Exception):
    """A RUN instruction failed; the text holds it and what it printed."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root folder, and how what is in it is started."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    volumes: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    mounted: Mapping[str, Path] = field(default_factory=dict)

    def entry(self, *arguments: str, **environment: str) -> Entry:
        """Its program with these arguments and variables, as an engine starts it with `--read-only`."""
        user, _, group = self.user.partition(":")
        return Entry(
            root=str(self.root),
            command=[*self.entrypoint, *arguments],
            # A user without a name has no home, and engines say so like this.
            environment={"HOME": "/", **self.environment, **environment},
            folder=self.folder,
            user=int(user),
            group=int(group or "0"),
            volumes=list(self.volumes),
            mounted={inside: str(outside) for inside, outside in self.mounted.items()},
        )


@dataclass
class Builder:
    """Builds images below `place`. `images` are those that FROM may name, `offered` goes to each step, read-only."""

    place: Path
    images: dict[str, Image]
    variables: Mapping[str, str] = field(default_factory=dict)
    offered: Mapping[str, Path] = field(default_factory=dict)

    def build(self, name: str, text: str, context: Path) -> Image:
        """The last stage's image, known by `name` from then on."""
        stages = dict(self.images)
        image: Image | None = None
        label = ""
        for number, (keyword, rest) in enumerate(instructions(text)):
            if keyword == "FROM":
                base, _, label = rest.partition(" AS ")
                image = self._copied(stages[base], self.place / f"{name}-{number}")
            else:
                assert image is not None, "FROM comes first"
                image = self._step(image, keyword, rest, context, stages)
            stages[label] = image
        assert image is not None
        self.images[name] = image
        return image

    def _copied(self, base: Image, root: Path) -> Image:
        lay_over(base.root, root, "--link")
        return replace(base, root=root)

    def _step(self, image: Image, keyword: str, rest: str, context: Path, stages: Mapping[str, Image]) -> Image:
        match keyword:
            case "RUN":
                self._run(image, rest)
            case "COPY":
                _copy(image, shlex.split(rest), context, stages)
            case "WORKDIR":
                _inside(image, rest).mkdir(parents=True, exist_ok=True)
                return replace(image, folder=rest)
            case "ENV":
                variable, _, value = rest.partition("=")
                return replace(image, environment={**image.environment, variable: value})
            case "USER":
                return replace(image, user=rest)
            case "VOLUME":
                _inside(image, rest).mkdir(parents=True, exist_ok=True)
                return replace(image, volumes=(*image.volumes, rest))
            case "ENTRYPOINT" | "CMD":
                return replace(image, entrypoint=tuple(json.loads(rest)))
            case "EXPOSE":
                pass
            case _:
                raise StepFailed(f"{keyword} is not known here")
        return image

    def _run(self, image: Image, command: str) -> None:
        entry = Entry(
            root=str(image.root),
            command=["/bin/sh", "-c", command],
            environment={"HOME": "/root", **image.environment, **self.variables},
            folder=image.folder,
            is_read_only=False,
            volumes=["/tmp"],
            mounted={inside: str(outside) for inside, outside in self.offered.items()},
        )
        done = subprocess.run(entry.argv(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise StepFailed(f"RUN {command}\n{done.stdout}")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Keyword and the rest, comments left out and continued lines joined."""
    kept = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in kept.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        yield keyword, " ".join(rest.split()) if keyword == "RUN" else rest.strip()


def _copy(image: Image, arguments: list[str], context: Path, stages: Mapping[str, Image]) -> None:
    source = context
    if arguments[0].startswith("--from="):
        source = stages[arguments.pop(0).removeprefix("--from=")].root
    *patterns, to = arguments
    target = _inside(image, to)
    for pattern in patterns:
        found = sorted(source.glob(pattern.lstrip("/")))
        assert found, f"COPY: nothing is named {pattern}"
        for path in found:
            lay_over(path, target / path.name if to.endswith("/") else target, "--link" if source != context else "")


def lay_over(path: Path, target: Path, link: str = "") -> None:
    """A folder goes over the one that is there. Roots share files: no step writes into one that it did not make."""
    target.parent.mkdir(parents=True, exist_ok=True)
    how = ["--archive", "--no-target-directory", *filter(None, [link])]
    subprocess.run(["cp", *how, str(path), str(target)], check=True)


def _inside(image: Image, path: str) -> Path:
    """Where the image's path is here; a relative one begins at its WORKDIR."""
    return image.root / (path if path.startswith("/") else f"{image.folder}/{path}").lstrip("/")
