"""Features of pictures by a vision encoder alone (Arlow): how alike they are, and all of them in one file.

python examples/encoder_features.py BUNDLE OUT.npz IMAGE IMAGE [IMAGE ...]
"""

import sys

import numpy as np
from lensmith.runtimes import Encoder, load, save_features


def main(bundle: str, out: str, *images: str) -> None:
    encoder = load(bundle)
    if not isinstance(encoder, Encoder):
        sys.exit(f"{bundle} answers questions; this example wants a bundle of an encoder alone")
    made = encoder.features(images)
    for image, features in zip(images, made, strict=True):
        print(f"{image}: grid {features.grid}, {len(features)} tokens, {features.vision_ms:.0f} ms")
    means = np.stack([features.features.mean(axis=0) for features in made])  # [images, hidden]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    print(np.array2string(means @ means.T, precision=3))  # cosines, [images, images]
    save_features(out, made)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
