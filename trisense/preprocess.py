"""What the encoders read, made with numpy: a picture -> `pixel_values`, a sound -> log-mel `input_features`.

Equal to the processors of transformers that the encoders were trained with (tests hold it), without importing torch.

Letters: H, W height and width of a picture, T samples of a sound, M mel bins, F frames, K frequencies of one frame.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trisense.errors import BadInput

Model = TypeVar("Model", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]
Channels = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Whisper's filter bank always ends here, whatever the sampling rate.
TOP_FREQUENCY = 8000.0
# Powers below this count as silence: log10 gives -10.
FLOOR = np.float32(1e-10)


class ImageProcessor(BaseModel):
    """A picture -> `pixel_values`, as CLIP's image processor does it (Radford et al., 2021).

    With `crop` the shortest edge is resized to `shortest_edge` pixels and the centre `height` x `width` is kept, black
    where the picture ends; the longer edge is rounded down, as transformers rounds it (other libraries round to
    nearest, which moves a picture by up to half a pixel). Without `crop` the picture is stretched to height x width.

    Resampling is Pillow's, like that of transformers' Pil processor, but only the part that survives the crop is
    computed. A channel then differs from resizing first and cropping after by at most 1/255, where Pillow rounds the
    corners of that part to float32; it does not differ when nothing is cropped. The torchvision processor of
    transformers resamples with its own antialiasing and is not what this follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Positive = 224
    width: Positive = 224
    crop: bool = True
    shortest_edge: Positive | None = None
    """Length of the resized shortest edge, in pixels; None: the smaller of `height` and `width`. Only with `crop`."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Channels = (0.48145466, 0.4578275, 0.40821073)
    std: Deviations = (0.26862954, 0.26130258, 0.27577711)
    tokens: Positive
    """How many feature vectors, and so how many places in the prompt, one picture becomes."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB picture of any size -> float32 [3, H, W], normalised by `mean` and `std` of values in [0, 1]."""
        if image.mode != "RGB":
            raise BadInput(f"a picture in mode {image.mode}; expected RGB: open it with trisense.media.load_image")
        pixels = self._cropped(image) if self.crop else image.resize((self.width, self.height), FILTERS[self.resample])
        scale = (1 / (255 * np.array(self.std))).astype(np.float32)  # [3]
        shift = (np.array(self.mean) / np.array(self.std)).astype(np.float32)  # [3]
        values = np.asarray(pixels, np.float32) * scale - shift  # [H, W, 3]
        return np.ascontiguousarray(values.transpose(2, 0, 1))  # [3, H, W]

    def located(self, x: float, y: float, width: int, height: int) -> tuple[float, float]:
        """Where a point of a picture of width x height pixels lies in what the encoder reads: (0, 0) is its upper left
        corner, (1, 1) its lower right one. A point that the crop removes lies outside of them."""
        if not self.crop:
            return x / width, y / height
        edge, short = self.shortest_edge or min(self.height, self.width), min(width, height)
        resized_x, resized_y = edge * width // short, edge * height // short
        return (
            (x * resized_x / width - (resized_x - self.width) // 2) / self.width,
            (y * resized_y / height - (resized_y - self.height) // 2) / self.height,
        )

    def _cropped(self, image: Image.Image) -> Image.Image:
        edge = self.shortest_edge or min(self.height, self.width)
        short = min(image.size)
        x = _visible(image.width, edge * image.width // short, self.width)
        y = _visible(image.height, edge * image.height // short, self.height)
        size = (x.length, y.length)
        # One resize of the surviving box: a strip of 1 x 50,000 pixels never becomes 224 x 11,200,000.
        part = image.resize(size, FILTERS[self.resample], box=(x.start, y.start, x.end, y.end))
        if size == (self.width, self.height):
            return part
        canvas = Image.new("RGB", (self.width, self.height))
        canvas.paste(part, (x.offset, y.offset))
        return canvas

    @classmethod
    def from_transformers(cls, config: dict[str, Any], tokens: int) -> ImageProcessor:
        """From the content of a CLIP-like `preprocessor_config.json`.

        Raises BadInput for a setting that this processor would not follow, rather than dropping it.
        """
        for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_convert_rgb", True), ("do_pad", False)):
            if config.get(key) not in (None, wanted):
                raise BadInput(f"preprocessor config: {key} is {config[key]}; only {wanted} is supported")
        if abs((config.get("rescale_factor") or 1 / 255) - 1 / 255) > 1e-9:
            raise BadInput(f"preprocessor config: rescale_factor is {config['rescale_factor']}; expected 1/255")
        names = {int(value): name for name, value in FILTERS.items()}
        resample = config.get("resample", 3)
        if resample not in names:
            raise BadInput(f"preprocessor config: resample is {resample!r}; expected 2 (bilinear) or 3 (bicubic)")
        options: dict[str, Any] = {"resample": names[resample], "tokens": tokens}
        if not config.get("do_normalize", True):
            options |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        else:
            options |= {name: config[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in config}

        size = config.get("size", {"shortest_edge": 224})
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop_size = config.get("crop_size", {"height": 224, "width": 224})
        crop_size = {"height": crop_size, "width": crop_size} if isinstance(crop_size, int) else crop_size
        cropping = config.get("do_center_crop", True)
        if set(size) == {"shortest_edge"} and cropping:
            return _checked(cls, options | crop_size | size)
        if set(size) == {"height", "width"} and (not cropping or crop_size == size):
            return _checked(cls, options | size | {"crop": False})
        raise BadInput(
            f"preprocessor config: size {size} with do_center_crop {cropping} and crop_size {crop_size} does not give "
            "every picture one size; expected a shortest_edge with a crop, or a height and width without"
        )


class _Span(NamedTuple):
    """Where one axis of the crop comes from (pixels of the picture) and where it goes (pixels of the result)."""

    start: float
    end: float
    offset: int
    length: int


def _visible(source: int, resized: int, wanted: int) -> _Span:
    first = (resized - wanted) // 2
    low, high = max(first, 0), min(first + wanted, resized)
    return _Span(low * source / resized, min(high * source / resized, source), low - first, high - low)


class AudioProcessor(BaseModel):
    """A sound -> log-mel `input_features`, as Whisper's feature extractor does it (Radford et al., 2022)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mel_bins: Positive = 80
    n_fft: Annotated[int, Field(gt=1, multiple_of=2)] = 400
    hop_length: Positive = 160
    sampling_rate: Annotated[int, Field(ge=16000)] = 16000
    chunk_seconds: Annotated[float, Field(gt=0)] | None = 30.0
    """Sounds are padded with silence, or cut, to this length; None: every sound keeps its own."""
    frames_per_token: Positive = 2
    """Frames that the encoder joins into one feature vector."""

    @model_validator(mode="after")
    def _frames_touch(self) -> AudioProcessor:
        if self.hop_length > self.n_fft:
            raise ValueError(f"hop_length {self.hop_length} skips samples: at most n_fft, {self.n_fft}")
        if self.chunk_seconds is not None and round(self.chunk_seconds * self.sampling_rate) < self.n_fft:
            raise ValueError(f"chunk_seconds {self.chunk_seconds} is shorter than one window of {self.n_fft} samples")
        return self

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """A mono sound [T] at `sampling_rate`, values in [-1, 1] -> float32 [mel_bins, F].

        F is T // hop_length of the padded or cut sound: the last frame is dropped, as Whisper drops it. Without a
        chunk length, a sound shorter than one window is padded with silence to `n_fft` samples, so that a frame comes
        out. Raises BadInput when the sound is empty or not one channel.
        """
        if wave.ndim != 1 or not len(wave):
            raise BadInput(f"a sound of shape {wave.shape}; expected [samples], one channel, not empty")
        chunk = None if self.chunk_seconds is None else round(self.chunk_seconds * self.sampling_rate)
        wave = wave[:chunk].astype(np.float32, copy=False)
        length = chunk or max(len(wave), self.n_fft)
        half = self.n_fft // 2
        # Frames from here on lie wholly in the padding: silence needs no transform.
        heard = min(length // self.hop_length, -(-(len(wave) + half) // self.hop_length))

        padded = np.pad(np.pad(wave, (0, length - len(wave))), half, mode="reflect")
        frames = sliding_window_view(padded, self.n_fft)[:: self.hop_length][:heard]  # [F, n_fft]
        spectrum = np.fft.rfft(frames * _hann(self.n_fft))  # [F, K]
        power = np.square(spectrum.real) + np.square(spectrum.imag)  # [F, K]
        mels = mel_filter_bank(self.mel_bins, self.n_fft, self.sampling_rate) @ power.T.astype(np.float32, copy=False)

        features = np.full((self.mel_bins, length // self.hop_length), np.log10(FLOOR), np.float32)  # [M, F]
        features[:, :heard] = np.log10(np.maximum(mels, FLOOR))
        np.maximum(features, features.max() - 8.0, out=features)
        return (features + 4.0) / 4.0

    def num_tokens(self, frames: int) -> int:
        """How many feature vectors `frames` frames become."""
        return -(-frames // self.frames_per_token)

    @classmethod
    def from_transformers(cls, config: dict[str, Any]) -> AudioProcessor:
        """From the content of a Whisper `preprocessor_config.json`.

        Raises BadInput for a setting that this processor would not follow, rather than dropping it.
        """
        kind = config.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise BadInput(f"preprocessor config: feature_extractor_type is {kind}; expected WhisperFeatureExtractor")
        for key in ("do_normalize", "dither", "padding_value"):
            if config.get(key):
                raise BadInput(f"preprocessor config: {key} is {config[key]}; only 0 or false is supported")
        names = {
            "mel_bins": "feature_size",
            "n_fft": "n_fft",
            "hop_length": "hop_length",
            "sampling_rate": "sampling_rate",
            "chunk_seconds": "chunk_length",
        }
        return _checked(cls, {name: config[key] for name, key in names.items() if key in config})


def _checked(cls: type[Model], options: dict[str, Any]) -> Model:
    try:
        return cls(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or cls.__name__
        raise BadInput(f"preprocessor config: {key} is {first['input']!r}: {first['msg']}") from error


@lru_cache(maxsize=8)
def _hann(length: int) -> np.ndarray:
    """The periodic Hann window, float32 [length]."""
    return np.hanning(length + 1)[:-1].astype(np.float32)


@lru_cache(maxsize=8)
def mel_filter_bank(mel_bins: int, n_fft: int, sampling_rate: int) -> np.ndarray:
    """Triangles of equal area, evenly spaced on Slaney's mel scale (Auditory Toolbox, 1998) from 0 to 8000 Hz.

    Returns float32 [M, K] with K = n_fft // 2 + 1; read-only, since it is shared between calls.
    """
    logstep = np.log(6.4) / 27.0
    mels = np.linspace(0.0, 15.0 + np.log(TOP_FREQUENCY / 1000.0) / logstep, mel_bins + 2)
    # Linear below 1000 Hz (15 mel), logarithmic above.
    corners = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(logstep * (mels - 15.0)))  # [M + 2] Hz
    frequencies = np.linspace(0, sampling_rate // 2, n_fft // 2 + 1)  # [K] Hz
    low, centre, high = (corners[i : i + mel_bins, None] for i in range(3))  # [M, 1] each
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    bank = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))  # [M, K]
    bank = bank.astype(np.float32)
    bank.flags.writeable = False
    return bank
