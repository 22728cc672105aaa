"""What a visitor may ask of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds, each of which is told where it is met.

    Attributes:
        file_bytes: of an uploaded file.
        folder_bytes: of all uploads that are on their way, and of all that wait to be read.
        body_bytes: of any other request.
        body_s: until a request has been sent.
        pixels: of a picture.
        frame_pixels: of a frame of a video.
        seconds: of a video.
        decode_seconds: for reading an upload.
        decode_bytes: of memory for it.
        upload_age_s: after which an upload that nothing read is removed.
        question_chars: of a question.
        spec_chars: of a spec.
        jobs: that wait for their turn; more are turned away, and from half of them on those of one visitor.
        wait_s: until work begins.
        work_s: of the model's time for one request, a sweep included.
        kept_bytes: of pictures that visitors look at; what was not looked at for longest is forgotten.
        kept_s: after which they are forgotten anyway.
        sessions: open pages that Gradio remembers.
    """

    file_bytes: int = 20 * 2**20
    folder_bytes: int = 400 * 2**20
    body_bytes: int = 256 * 2**10
    body_s: float = 60.0
    pixels: int = 16_000_000
    frame_pixels: int = 3_700_000
    seconds: float = 600.0
    decode_seconds: int = 20
    decode_bytes: int = 3 * 2**30
    upload_age_s: float = 300.0
    question_chars: int = 500
    spec_chars: int = 400
    jobs: int = 64
    wait_s: float = 120.0
    work_s: float = 300.0
    kept_bytes: int = 2 * 2**30
    kept_s: float = 3600.0
    sessions: int = 2000
