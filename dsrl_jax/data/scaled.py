"""A split seen at another scale, for evaluation at several."""

import dataclasses

from dsrl_jax.data import geometry
from dsrl_jax.data.sources import element_name, image_size


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The images of a source `factor` times as large, antialiased bilinear; without labels."""

    source: object
    factor: float

    def __len__(self) -> int:
        return len(self.source)

    def files(self, index: int) -> dict:
        return self.source.files(index)

    def element_name(self, index: int) -> str:
        return element_name(self.source, index)

    def image_size(self, index: int) -> tuple[int, int]:
        return self._scaled(image_size(self.source, index))

    def __getitem__(self, index: int) -> dict:
        element = self.source[index]
        image = element['image']
        size = self._scaled(image.shape[:2])
        # The colour is of what lies around an image, and a resized one has nothing around it.
        image = geometry.fit(image, size, 'resize', fill=0)['target']
        return {'image': image, 'name': element['name']}

    def _scaled(self, size) -> tuple[int, int]:
        # Rounded down: what fits into a view fits, scaled, into the scaled view.
        return tuple(max(1, int(n * self.factor)) for n in size)
