"""Makes a bundle of published weights: PyTorch, safetensors or ONNX.

    jaxface weights import FILE --bundle DIR                         the names of the tensors tell the network
    jaxface weights import FILE --network iresnet50 --bundle DIR     it is named, as an ONNX graph needs

    jaxface weights import FILE --network retinanet_resnet50 --bundle DIR    a detector of MMDetection or torchvision

Known are iResNet and MobileFaceNet under InsightFace's names, RetinaFace under those of Pytorch_Retinaface, and with --network
ViT, DeiT and Swin under timm's, RetinaNet and Faster R-CNN under MMDetection's and torchvision's. The bundle says whose weights
they are and on what terms, as far as that is known; --license says otherwise.
"""

import sys

from jaxface.cli.console import command_parser, exit_on_user_error, say, use_compilation_cache
from jaxface.errors import UserError
from jaxface.paths import local_path

_FIELDS = ("embedding", "image_size", "color", "normalization")


def _arguments(arguments: list[str]):
    parser = command_parser("weights", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import")
    reading = commands.add_parser("import", help="published weights to a bundle", allow_abbrev=False)
    reading.add_argument("file", metavar="FILE", help="PyTorch state dict (.pth), safetensors or ONNX")
    reading.add_argument("--bundle", metavar="DIR", required=True, help="folder to write")
    reading.add_argument(
        "--network",
        help="iresnet18 to iresnet200, mobilefacenet, deit_tiny_distilled, …, retinanet_resnet50, faster_rcnn_torchvision, …; "
        "found out unless given",
    )
    reading.add_argument(
        "--embedding", type=int, help="of --network: size of an embedding, or number of classes; default 512"
    )
    reading.add_argument(
        "--image-size",
        type=int,
        help="of --network: side of the crops, pixels; default 112, 224 of transformers",
    )
    reading.add_argument(
        "--color", choices=("rgb", "bgr"), help="of --network: order of channels; default rgb"
    )
    reading.add_argument(
        "--normalization",
        choices=("centered", "imagenet"),
        help="of --network: of the images that it was trained on; default centered, in [-1, 1]",
    )
    reading.add_argument("--license", metavar="TEXT", help="of the weights")
    reading.add_argument("--origin", metavar="TEXT", help="who made the weights from what")
    options = parser.parse_args(arguments)
    for name in _FIELDS:
        if options.network is None and getattr(options, name) is not None:
            raise UserError(f"{name.replace('_', '-')}: needs --network, whose it is")
    return options


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Reads, writes and says what was read on which terms."""
    options = _arguments(arguments)
    file, out = local_path("weights", options.file), local_path("bundle", options.bundle)
    use_compilation_cache()
    import dataclasses

    from jaxface import inference, models
    from jaxface.models.detection import PUBLISHED_DETECTORS

    texts = {name: getattr(options, name) for name in ("license", "origin")}
    texts = {name: text for name, text in texts.items() if text is not None}
    if options.network is None:
        if file.is_dir():
            raise UserError(
                f"weights: needs a file, got the folder {file}; jaxface export makes bundles of runs"
            )
        bundle = dataclasses.replace(inference.open_bundle(file), **texts)
    else:
        fields = {name: getattr(options, name) for name in _FIELDS}
        given = {name: value for name, value in fields.items() if value is not None}
        if options.network in PUBLISHED_DETECTORS:
            if surplus := [name for name in given if name != "image_size"]:
                raise UserError(
                    f"{surplus[0].replace('_', '-')}: needs a recognizer; {options.network} is a detector, which has its own"
                )
            bundle = inference.import_detector(file, options.network, **given, **texts)
        else:
            bundle = inference.import_recognizer(file, options.network, **given, **texts)
    inference.save_bundle(out, bundle)
    network = bundle.description()["network"]["name"]
    say(f"{network}, {models.parameter_count(bundle.variables):,} parameters: {out}")
    say(f"license: {bundle.license or 'not known'}")


if __name__ == "__main__":
    main(sys.argv[1:])
