"""What can go wrong while a bundle is built or published.

OutpostError (of the runtime)
├── ExportError
│   ├── SourceError      the checkpoint, adapter or ONNX file cannot be used: bring another
│   ├── RecipeError      the recipe or an option is wrong: change it
│   ├── ConversionError  a library failed on this source: report it, or use another target
│   └── EvidenceError    the build is worse than its recipe allows: change the recipe
└── PublishError         the repository or its keys cannot be used as asked: nothing was published
"""

from outpost_runtime.errors import OutpostError


class ExportError(OutpostError):
    """No bundle was built."""


class SourceError(ExportError):
    """The checkpoint, adapter or ONNX file cannot be used."""


class RecipeError(ExportError):
    """The recipe or an option is wrong."""


class ConversionError(ExportError):
    """A library failed on this source."""


class EvidenceError(ExportError):
    """The build is worse than its recipe allows."""


class PublishError(OutpostError):
    """Nothing was published: the repository or its keys cannot be used as asked."""
