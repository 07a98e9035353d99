"""Everything that the curation job accepts, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.settings import SettingsError, option, required

PROFILES = Path(__file__).parent / "profiles"
LIPS = Path(__file__).parent / "backends" / "lip_sync.npz"
"""Parameters of the built-in lip/audio score, as shipped."""


@dataclass(frozen=True)
class ScanConfig:
    """How pictures are read and shots found."""

    mode: str = option(
        "auto", "full, sparse (decode only around keyframes that show a face) or auto", ("full", "sparse", "auto")
    )
    sparse_minutes: float = option(20.0, "auto: sparse from this length on (not where spans are asked for), minutes")
    sparse_side: int = option(416, "sparse: long side at which keyframes are searched for faces, pixels")
    sparse_seconds: float = option(4.0, "sparse: keyframes closer than this that look alike are searched once, s")
    detector: str = option(
        "adaptive",
        "what finds cuts: adaptive, content (PySceneDetect) or transnetv2",
        ("adaptive", "content", "transnetv2"),
    )
    shortest_shot: int = option(0, "a cut is passed over when it follows another within so many frames")
    look_seconds: float = option(1.0, "time between searches for faces, s")
    face_score: float = option(0.35, "least score of a face, 0-1")

    def models(self) -> list[str]:
        """Catalogue entries that scanning needs."""
        return ["centerface"] + (["transnetv2"] if self.detector == "transnetv2" else [])


@dataclass(frozen=True)
class ListenConfig:
    """How voices are told apart."""

    diarization: str = option(
        "embedded", "embedded (no account needed) or pyannote (pyannote.audio 4)", ("embedded", "pyannote")
    )
    pyannote: str = option(
        "pyannote/speaker-diarization-community-1",
        "pipeline of the pyannote backend: a local folder, or a hub id (token in HF_TOKEN)",
    )
    quality: bool = option(True, "rate each turn with DNSMOS")
    limit_hours: float = option(12.0, "longest sound track that is read, hours")

    def models(self) -> list[str]:
        """Catalogue entries that listening needs."""
        needed = ["segmentation-3.0", "cam++", "silero-vad"] if self.diarization == "embedded" else []
        return needed + (["dnsmos"] if self.quality else [])


@dataclass(frozen=True)
class ProposeConfig:
    """What makes a candidate."""

    min_seconds: float = option(49 / 25, "shortest clip, s (49 frames at 25 fps)")
    max_seconds: float = option(20.0, "longest clip, s; longer stretches are cut into equal parts")
    static_share: float = option(
        0.85, "a shot that stands still for more of its time than this is a picture of somebody"
    )
    face_gap_seconds: float = option(1.5, "longest stretch without a face that a clip may hold between two faces, s")


@dataclass(frozen=True)
class ScoreConfig:
    """How clips are measured. Nothing is left out here: see manifests/recipes for thresholds."""

    face_score: float = option(0.35, "least score of a face, 0-1")
    identity: str = option(
        "dlib", "face embeddings: dlib (open licence) or insightface (512-d, as papers use)", ("dlib", "insightface")
    )
    identity_samples: int = option(4, "face embeddings of a clip")
    insightface: str = option("", "insightface: the folder of an unpacked buffalo_l")
    lips: str = option("", "parameters of the built-in lip/audio score, as fit_lips.py writes them; empty: ours")
    text: bool = option(False, "look for writing (text_share); about 0.03 core-seconds a second of clip")
    music: str = option("", "folder of FireRedVAD's fireredvad_aed.onnx and cmvn.ark; empty: no music_share")
    syncnet: str = option("", "file of SyncNet's weights (syncnet_v2.model); empty: no sync_c, sync_d, sync_offset")
    device: str = option("cpu", "where SyncNet runs: cpu or cuda", ("cpu", "cuda"))
    cascade: list[str] = option(
        [], "bounds on the sound's columns (dnsmos_bak>=2.5): the pictures of a clip outside them are not looked at"
    )

    def models(self) -> list[str]:
        """Catalogue entries that scoring needs."""
        needed = ["centerface", "face-landmarker", "whisper-tiny.en", "dnsmos"]
        needed += ["dlib-face"] if self.identity == "dlib" else []
        return needed + (["text-detection"] if self.text else [])

    def files(self) -> list[Path]:
        """Files of parameters that scoring reads beside those of the catalogue."""
        found = [Path(self.lips) if self.lips else LIPS]
        if self.syncnet:
            found.append(Path(self.syncnet))
        if self.music:
            found.append(Path(self.music) / "fireredvad_aed.onnx")
        if self.identity == "insightface":
            found.append(Path(self.insightface) / "w600k_r50.onnx")
        return found


@dataclass(frozen=True)
class StageResources:
    """What one worker of a stage gets, and how far a row may go before it is given up."""

    cpus: float = option(1.0, "CPU cores a worker works with: its libraries use this many threads (at least 1)")
    gpus: float = option(0.0, "GPUs a worker reserves; a fraction shares one")
    batch: int = option(1, "rows gathered before a worker is called; above 1 the first results come later")
    workers: int | None = option(None, "most workers; null: as many as the cluster's cores allow")
    seconds: float = option(3600.0, "longest time for one row; then its process is ended and the row is a failure")
    memory_gb: float = option(4.0, "most memory for one row; then its process is ended and the row is a failure")
    attempts: int = option(3, "how often a row is tried that ends its process (a row that raises is tried once)")


@dataclass(frozen=True)
class Resources:
    scan: StageResources = field(default_factory=StageResources)
    listen: StageResources = field(default_factory=StageResources)
    propose: StageResources = field(default_factory=lambda: StageResources(cpus=0.0, workers=1))
    score: StageResources = field(default_factory=StageResources)


@dataclass(frozen=True)
class RayConfig:
    address: str | None = option(None, "a running cluster ('auto' finds this machine's); null: one of its own")
    cpus: int | None = option(None, "cores of the job's own Ray; null: all of this machine")
    block_files: int = option(256, "most files that travel through the job as one block")
    block_mb: float = option(256.0, "most megabytes of footage in one block: large films travel alone")


@dataclass(frozen=True)
class CurationConfig:
    """Settings of curation/run.py."""

    input: str = required(
        "a video, folder, glob, list (.txt) or table (.csv, .parquet) of videos; local, s3:// or gs://"
    )
    output: str = required("where the manifests go: a folder, or s3:// or gs://")
    profile: str = option("embedded", "which models play which role: a file of curation/profiles")
    source_set: str = option("", "label for footage that brings none: hdtf, youtube, movie …")
    licence: str = option("", "licence of footage that states none")
    until: str = option("score", "the last stage to run", ("scan", "listen", "propose", "score"))
    dry_run: bool = option(False, "only say what would be done and what it would cost")
    retry: bool = option(False, "try again what failed in an earlier run")
    compact_above: int = option(1000, "gather a table's part files once there are more than this many")
    scan: ScanConfig = field(default_factory=ScanConfig)
    listen: ListenConfig = field(default_factory=ListenConfig)
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    resources: Resources = field(default_factory=Resources)
    ray: RayConfig = field(default_factory=RayConfig)


CONTENTS = ("video", "latent", "motion", "reference", "face", "audio", "text", "mask")
LATENTS = {"latent", "motion", "reference"}
"""Those that the codec makes."""


@dataclass(frozen=True)
class PackConfig:
    """Settings of curation/pack.py."""

    output: str = required("what curation/run.py wrote: a folder, or s3:// or gs://")
    selection: str = required("what to pack: a selection that manifests/filter.py wrote")
    shards: str = option("", "where the shards go: a folder, s3:// or gs://; empty: <output>/shards/<selection>")
    format: str = option(
        "webdataset", "webdataset, or hallo3: the tree that Hallo3's own trainer reads", ("webdataset", "hallo3")
    )
    contents: list[str] = option(list(CONTENTS), f"what a sample holds, of {', '.join(CONTENTS)}")
    frames: int = option(49, "frames of a window, at 25 fps: 1 + 4k")
    stride: int = option(49, "frames from one window of a clip to the next; the last ends with the clip")
    width: int = option(720, "width of the pictures made, pixels")
    height: int = option(480, "height of the pictures made, pixels")
    room: float = option(2.4, "height of the crop in face heights, where the source has as much")
    upscale: bool = option(False, "enlarge crops that have fewer pixels than are made (recorded with each sample)")
    pad: bool = option(
        True, "black beside a source too narrow for any crop, as HDTF's squares (recorded in samples); false: refuse it"
    )
    motion_frames: int = option(2, "frames before the window that its motion is taken from")
    reference_frames: int = option(4, "frames of the clip drawn as references")
    audio_margin: int = option(2, "frames of the speech embedding beyond either end of the window")
    face: str = option("one", "face embeddings of a sample: one (of a frame drawn by the seed) or all", ("one", "all"))
    face_samples: int = option(8, "frames of a clip whose face embeddings are drawn from, or all kept")
    codec: str = option("dct", "what makes latents: dct (no weights) or cogvideox", ("dct", "cogvideox"))
    codec_source: str = option("", "cogvideox: a local folder or the hub's org/name; empty: the published one")
    speech: str = option("whisper", "what makes speech embeddings: whisper or wav2vec2", ("whisper", "wav2vec2"))
    speech_source: str = option("", "wav2vec2: a local folder or the hub's org/name; empty: the published one")
    vocals: str = option(
        "", "file of an MDX-Net separator (Kim_Vocal_2.onnx): speech embeddings are of the voice alone; empty: none"
    )
    vocals_fft: int = option(0, "vocals: samples of a frame of its spectrogram; 0: known, as that of Kim_Vocal_2 is")
    text: str = option("minilm", "what makes text embeddings: minilm or t5", ("minilm", "t5"))
    text_source: str = option("", "t5: a local folder or the hub's org/name; empty: the published one")
    identity: str = option(
        "dlib", "what makes face embeddings: dlib (128-d) or insightface (512-d)", ("dlib", "insightface")
    )
    insightface: str = option("", "insightface: the folder of an unpacked buffalo_l")
    captions: str = option("", "table (.csv, .parquet) with `caption`, and `clip_id` or `path`; else a .txt beside it")
    captioner: str = option("", "vision-language model of transformers for clips without a caption; empty: none")
    crf: int = option(18, "quality of the videos: x264's constant rate factor, less is better")
    preset: str = option("medium", "x264's preset: how long it may search")
    device: str = option("cpu", "where codec and encoders run: cpu or cuda", ("cpu", "cuda"))
    precision: str = option("float32", "what codec and text encoder compute in", ("float32", "bfloat16", "float16"))
    seed: int = option(0, "of the samples' order and of the frames that are drawn")
    shard_mb: float = option(1000.0, "size of a shard, about, MB")
    mix_shards: int = option(32, "shards that samples are shuffled among; so much is staged at once")
    dry_run: bool = option(False, "only say what would be packed and how large it will be")
    retry: bool = option(False, "try again what failed in an earlier run; shards that lack it are made anew")
    resources: StageResources = field(default_factory=lambda: StageResources(memory_gb=8.0))
    ray: RayConfig = field(default_factory=RayConfig)

    @property
    def place(self) -> str:
        """Where the shards go."""
        return (self.shards or f"{self.output.rstrip('/')}/shards/{self.selection}").rstrip("/")

    @property
    def varying(self) -> tuple[str, ...]:
        """Arrays that are longer in one sample than in another: T5 fills every caption up, MiniLM does not."""
        return ("text.npy",) if self.text == "minilm" else ()

    def models(self) -> list[str]:
        """Catalogue entries that packing needs."""
        needed = ["whisper-tiny.en"] if "audio" in self.contents and self.speech == "whisper" else []
        needed += ["minilm"] if "text" in self.contents and self.text == "minilm" else []
        return needed + (["dlib-face"] if "face" in self.contents and self.identity == "dlib" else [])

    def check(self) -> None:
        """Raises SettingsError where the settings contradict each other."""

        def require(condition: bool, problem: str) -> None:
            if not condition:
                raise SettingsError(problem)

        unknown = sorted(set(self.contents) - set(CONTENTS))
        require(not unknown, f"contents: there is no {', '.join(unknown)}; there is {', '.join(CONTENTS)}")
        require(bool(self.contents), f"contents: nothing to pack; there is {', '.join(CONTENTS)}")
        require(self.frames > 0 and self.frames % 4 == 1, f"frames={self.frames}: 1 + 4k are needed, as 45, 49, 53")
        require(self.stride > 0, f"stride={self.stride}: at least 1")
        for name in ("width", "height"):
            size = getattr(self, name)
            require(size > 0 and size % 16 == 0, f"{name}={size}: a multiple of 16 is needed")
        for name in ("reference_frames", "face_samples", "mix_shards"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1")
        for name in ("motion_frames", "audio_margin"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: at least 0")
        require(
            "motion" not in self.contents or self.motion_frames > 0, "motion_frames=0: leave motion out of contents"
        )
        require(self.shard_mb > 0, f"shard_mb={self.shard_mb:g}: more than 0")
        insight = self.identity != "insightface" or "face" not in self.contents or bool(self.insightface)
        require(insight, "identity=insightface: insightface=… names the folder of an unpacked buffalo_l")
        is_there = not self.vocals or Path(self.vocals).is_file()
        require(is_there, f"vocals={self.vocals}: no such file; it is an MDX-Net separator, as Kim_Vocal_2.onnx")


def profile(asked: Any) -> Path:
    """The file of the profile that the settings ask for; raises SettingsError when there is none."""
    name = str(asked.get("profile", "embedded"))
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"profile={name!r}: there is {', '.join(sorted(file.stem for file in PROFILES.glob('*.yaml')))}"
        )
    return path
