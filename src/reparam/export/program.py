"""From torch modules to `.onnx` files: one trace, cut in pieces, without parts that some runtimes cannot read."""

import gc
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.utils import Extractor
from torch.distributions import Distribution

from reparam.export.onnx import AllGraphs, Graph

log = logging.getLogger(__name__)


def export_what_can_be(
    graphs: Mapping[str, Graph], opset: int, metadata: Mapping[str, str], directory: Path
) -> Mapping[str, Graph]:
    """Write the graphs, and return those that were written: not the score where ONNX lacks a likelihood's operators."""
    try:
        export_graphs(graphs, opset, metadata, directory)
    except torch.onnx.OnnxExporterError as problem:
        if "score" not in graphs:
            raise
        likelihood = type(graphs["score"].model.likelihood).__name__
        last = str(problem).strip().rpartition("\n")[2]
        log.warning("export: no score.onnx: ONNX cannot express log_prob of %s: %s", likelihood, last)
        graphs = {name: graph for name, graph in graphs.items() if name != "score"}
        export_graphs(graphs, opset, metadata, directory)
    return graphs


def export_graphs(graphs: Mapping[str, Graph], opset: int, metadata: Mapping[str, str], directory: Path) -> None:
    """Write `<name>.onnx` of each graph, with its own weights alone."""
    # Exported as one graph and cut up, because most work of the exporter is the same for any graph.
    names = {name: [f"{name}_{output}" for output in graph.outputs] for name, graph in graphs.items()}
    together = AllGraphs(graphs).eval()
    whole = Extractor(_export(together, [output for each in names.values() for output in each], opset))
    for (name, graph), inputs in zip(graphs.items(), together.inputs, strict=True):
        model = whole.extract_model(inputs, names[name])
        _rename(model, dict(zip([*names[name], *inputs], [*graph.outputs, *graph.inputs], strict=True)))
        clean(model)
        for key, value in sorted(metadata.items()):
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, directory / f"{name}.onnx")


def lowest_ir_version(opset: int) -> int:
    """Return the oldest file format that can hold an opset: newer ones are refused by older runtimes."""
    version: int = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return version


def _export(whole: AllGraphs, outputs: list[str], opset: int) -> Any:
    inputs = [torch.zeros(2, *tensor.row, dtype=getattr(torch, tensor.dtype)) for tensor in whole.facts.values()]
    gc.disable()  # the exporter imports and keeps so much that searching it for garbage takes a second
    is_validated = Distribution._validate_args
    Distribution.set_default_validate_args(False)  # `if` on values cannot be traced
    try:
        with warnings.catch_warnings():
            # torch 2.11 warns of its own code.
            warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec", FutureWarning)
            program = torch.onnx.export(
                whole,
                tuple(inputs),
                input_names=list(whole.facts),
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),),
                external_data=False,
                verbose=False,
            )
    finally:
        gc.freeze()  # the exporter keeps its objects: the garbage collector need not visit them later
        gc.enable()
        Distribution.set_default_validate_args(is_validated)
    assert program is not None
    return program.model_proto


def _rename(model: Any, names: Mapping[str, str]) -> None:
    """Give inputs and outputs their promised names, and call each first dimension `batch`."""
    for values in (value for node in model.graph.node for value in (node.input, node.output)):
        values[:] = [names.get(value, value) for value in values]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
        if value.type.tensor_type.shape.dim[0].dim_param:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def clean(model: Any) -> None:
    """Remove what no runtime needs: types of intermediate values, and the notes of the exporter."""
    model.ir_version = lowest_ir_version(model.opset_import[0].version)
    # Types of intermediate values: a quantiser infers its own, and fails on old ones.
    del model.graph.value_info[:]
    # The exporter's notes on our source files: absolute paths would make the bytes depend on the directory.
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    assert not model.functions
    graph.name = "main_graph"
    model.producer_name, model.producer_version = "reparam", ""
