"""Exports a model to a file for another runtime, with dynamic batch size, height and width (except in TorchScript).

The file contains the class names and the normalization. Detector.load and the other commands open it like a checkpoint.
By default, its inputs are 8-bit RGB images and their sizes, and its outputs are boxes in pixels, scores and labels.

Examples:
  deformable-detr export output/quickstart --format onnx
  deformable-detr export model_final.pth --format aoti --precision int8 --calibration train2017/
  deformable-detr export model_final.pth --format torch-export --precision bfloat16 --no-postprocess
"""

import argparse
from pathlib import Path

from ..errors import UserError
from .arguments import add_config_argument, check_writable

HELP = "write a model to a file for another runtime"
_DURATIONS = {"aoti": "several minutes, mostly for the compiler", "torchscript": "seconds"}
_FORMATS = ("torch-export", "aoti", "onnx", "openvino", "torchscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("weights", metavar="WEIGHTS", help="checkpoint, output folder or published weights")
    parser.add_argument("--format", required=True, choices=_FORMATS, help="format of the file")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file (default: model.SUFFIX next to the weights' file, with the precision in its name, such as "
        "model_int8.onnx; model_aoti.pt2 for aoti)",
    )
    add_config_argument(parser)
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="precision of the computation; int8: aoti, onnx and openvino, with --calibration (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="device that aoti compiles for (default: %(default)s)")
    graph = parser.add_argument_group("inputs and outputs")
    graph.add_argument(
        "--no-preprocess",
        action="store_true",
        help="inputs are normalized images (N, 3, H, W) and the padding mask (N, H, W), True on padding",
    )
    graph.add_argument(
        "--no-postprocess", action="store_true", help="outputs are logits and normalized boxes of all queries"
    )
    graph.add_argument("--float-input", action="store_true", help="images are float32 in 0–255 instead of uint8")
    graph.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="size of images in TorchScript (default: 800 800)"
    )
    onnx = parser.add_argument_group("onnx and openvino")
    onnx.add_argument("--opset", type=int, metavar="N", help="opset of ONNX, 18 to 22 (default: 18)")
    onnx.add_argument(
        "--sampling",
        choices=("gather", "gridsample"),
        help="operators of deformable attention (default: gather); TensorRT 10.14 to 11.1 miscompiles GridSample",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--calibration", metavar="DIR", help="folder of images for --precision int8")
    parser.add_argument(
        "--calibration-images",
        type=int,
        metavar="N",
        default=100,
        help="maximum number of images (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Exports the model and prints the path of the file."""
    from ..export import GraphSpec, calibration_images, export_model, suffix
    from ..inference import Detector
    from ..modeling import Detector as Model

    _check(args)
    detector = Detector.load(args.weights, config=args.config_file, device=args.device)
    if not isinstance(detector.model, Model):
        raise UserError(f"{args.weights} is an exported model: export the checkpoint")
    weights = Path(args.weights)
    folder = weights if weights.is_dir() else weights.parent if weights.is_file() else Path()
    kind = "_aoti" * (args.format == "aoti") + f"_{args.precision}" * (args.precision != "float32")
    output = args.output or folder / f"model{kind}{suffix(args.format)}"
    if Path(output).exists() and not args.overwrite:
        raise UserError(f"{output} exists: choose another file with --output, or add --overwrite")
    check_writable(Path(output).parent)
    graph = GraphSpec(
        args.format,
        args.precision,
        preprocess=not args.no_preprocess,
        postprocess=not args.no_postprocess,
        input_type="float32" if args.float_input or args.no_preprocess else "uint8",
    )
    calibration = None
    if args.calibration is not None:
        calibration = calibration_images(args.calibration, detector.metadata, args.calibration_images)
    options = {"opset": args.opset, "sampling": args.sampling, "size": args.size and tuple(args.size)}
    given = {name: value for name, value in options.items() if value is not None}
    print(f"Exporting to {output}, which takes {_DURATIONS.get(args.format, 'about a minute')}", flush=True)
    path = export_model(detector.model, detector.metadata, output, graph, calibration=calibration, **given)
    files = [path, path.with_suffix(".bin")] if args.format == "openvino" else [path]
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{path}: {args.format}, {args.precision}, {size:.1f} MB, {len(detector.class_names)} classes")


def _check(args: argparse.Namespace) -> None:
    """Raises `UserError` for options that do not apply to the format and would have no effect."""
    is_onnx = args.format in ("onnx", "openvino")
    if args.size is not None and args.format != "torchscript":
        raise UserError("--size is for --format torchscript: other formats have dynamic shapes")
    if (args.opset is not None or args.sampling is not None) and not is_onnx:
        raise UserError("--opset and --sampling are for --format onnx and openvino")
    if (args.precision == "int8") != (args.calibration is not None):
        raise UserError("--precision int8 and --calibration DIR, a folder of images, must be used together")
    if args.size is not None and min(args.size) < 1:
        raise UserError(f"--size must be two positive numbers, got {args.size[0]} {args.size[1]}")
    if args.calibration_images < 1:
        raise UserError(f"--calibration-images must be at least 1, got {args.calibration_images}")
    if args.device != "cpu" and args.format != "aoti":
        raise UserError("--device is for --format aoti: other formats are independent of the device")
