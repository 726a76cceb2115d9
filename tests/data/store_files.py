"""Feature files of every published layout, built by hand, not with the package's own writers."""

import base64
import dataclasses
import io
import json

import h5py
import lmdb
import numpy as np


@dataclasses.dataclass
class Photo:
    """features float32 [R, D], boxes float32 [R, 4] in pixels, size (width, height)."""

    features: np.ndarray
    pixels: np.ndarray
    size: tuple[int, int]

    @property
    def boxes(self):
        """Relative boxes, one number at a time."""
        w, h = self.size
        rows = [[x1 / w, y1 / h, x2 / w, y2 / h] for x1, y1, x2, y2 in self.pixels.tolist()]
        return np.array([[min(max(v, 0.0), 1.0) for v in row] for row in rows], np.float32)

    @property
    def fc(self):
        return self.features.mean(0, dtype=np.float32)


def random_photos(counts, width, seed=0):
    rng = np.random.default_rng(seed)
    photos = {}
    for image_id, count in counts.items():
        size = (int(rng.integers(200, 640)), int(rng.integers(200, 640)))
        corners = np.sort(rng.uniform(-2, 640, (count, 2, 2)).astype(np.float32), axis=1)
        corners = np.minimum(corners, np.float32(size))
        features = rng.normal(size=(count, width)).astype(np.float32)
        photos[image_id] = Photo(features, corners.reshape(count, 4), size)
    return photos


def write_npy(root, photos):
    """The reference's folders, relative boxes in float64."""
    for name in ("att", "fc", "box_relative"):
        (root / f"bu/cocobu_{name}").mkdir(parents=True)
    for image_id, photo in photos.items():
        np.save(root / f"bu/cocobu_att/{image_id}.npy", photo.features)
        np.save(root / f"bu/cocobu_fc/{image_id}.npy", photo.fc)
        np.save(root / f"bu/cocobu_box_relative/{image_id}.npy", photo.boxes.astype(np.float64))
    return root


def write_npz_feat(root, photos):
    """ruotianluo's folders: `feat` in `.npz`, boxes in pixels; sizes beside."""
    for name in ("att", "fc", "box"):
        (root / f"cocotalk_{name}").mkdir(parents=True)
    for image_id, photo in photos.items():
        np.savez_compressed(root / f"cocotalk_att/{image_id}.npz", feat=photo.features)
        np.save(root / f"cocotalk_fc/{image_id}.npy", photo.fc)
        np.save(root / f"cocotalk_box/{image_id}.npy", photo.pixels)
    return root


def b64(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def anderson_row(image_id, photo):
    w, h = photo.size
    columns = [image_id, w, h, len(photo.features), b64(photo.pixels), b64(photo.features)]
    return "\t".join(map(str, columns)) + "\n"


def write_anderson(root, photos):
    root.mkdir(parents=True)
    rows = [anderson_row(image_id, photo) for image_id, photo in photos.items()]
    (root / "karpathy_train_resnet101_faster_rcnn_genome.tsv.0").write_text("".join(rows[:2]))
    (root / "karpathy_train_resnet101_faster_rcnn_genome.tsv.1").write_text("".join(rows[2:]))
    return root


def write_lxmert(root, photos):
    root.mkdir(parents=True)
    rows = []
    for image_id, photo in photos.items():
        w, h = photo.size
        n = len(photo.features)
        ids, scores = b64(np.arange(n)), b64(np.ones(n, np.float32))
        columns = [f"COCO_val2014_{image_id:012d}", h, w, ids, scores, ids, scores, n]
        columns += [b64(photo.pixels), b64(photo.features)]
        rows.append("\t".join(map(str, columns)) + "\n")
    (root / "val2014_obj36.tsv").write_text("".join(rows))
    return root / "val2014_obj36.tsv"


def vinvl_features(photo):
    x1, y1, x2, y2 = photo.boxes.T
    return np.concatenate([photo.features, np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], 1)], 1)


def write_vinvl_json(root, photos):
    root.mkdir(parents=True)
    rows = []
    for image_id, photo in photos.items():
        content = {"num_boxes": len(photo.features), "features": b64(vinvl_features(photo))}
        rows.append(f"{image_id}\t{json.dumps(content)}\n")
    (root / "features.tsv").write_text("".join(rows))
    return root


def write_vinvl_plain(root, photos):
    root.mkdir(parents=True)
    rows = [
        f"{image_id}\t{len(photo.features)}\t{b64(vinvl_features(photo))}\n"
        for image_id, photo in photos.items()
    ]
    (root / "features.tsv").write_text("".join(rows))
    return root / "features.tsv"


def write_hdf5(root, photos):
    """The Meshed-Memory Transformer's file."""
    root.mkdir(parents=True)
    with h5py.File(root / "coco_detections.hdf5", "w") as file:
        for image_id, photo in photos.items():
            file[f"{image_id}_features"] = photo.features
            file[f"{image_id}_boxes"] = photo.pixels
            file[f"{image_id}_cls_prob"] = np.ones((len(photo.features), 3), np.float32)
    return root / "coco_detections.hdf5"


def write_bua_npz(root, photos):
    """bottom-up-attention.pytorch's archives, with their pickled `info`."""
    root.mkdir(parents=True)
    for image_id, photo in photos.items():
        w, h = photo.size
        np.savez_compressed(
            root / f"COCO_val2014_{image_id:012d}.jpg.npz",
            x=photo.features,
            bbox=photo.pixels,
            num_bbox=len(photo.features),
            image_h=h,
            image_w=w,
            info={"objects": [1, 2]},
        )
    return root


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def put(path, items):
    with lmdb.open(str(path), map_size=2**26) as database, database.begin(write=True) as txn:
        for key, value in items.items():
            txn.put(key.encode(), value)


def write_lmdb(root, photos):
    root.mkdir(parents=True)
    put(root / "cocobu_att.lmdb", {str(i): npy_bytes(p.features) for i, p in photos.items()})
    put(root / "cocobu_fc.lmdb", {str(i): npy_bytes(p.fc) for i, p in photos.items()})
    put(root / "cocobu_box.lmdb", {str(i): npy_bytes(p.pixels) for i, p in photos.items()})
    return root


LAYOUTS = {
    "npy": write_npy,
    "npz_feat": write_npz_feat,
    "anderson": write_anderson,
    "lxmert": write_lxmert,
    "vinvl_json": write_vinvl_json,
    "vinvl_plain": write_vinvl_plain,
    "hdf5": write_hdf5,
    "bua_npz": write_bua_npz,
    "lmdb": write_lmdb,
}
FORMATS = {
    **{"npy": "npy", "npz_feat": "npy", "anderson": "tsv", "lxmert": "tsv", "vinvl_json": "tsv"},
    **{"vinvl_plain": "tsv", "hdf5": "hdf5", "bua_npz": "npz", "lmdb": "lmdb"},
}


def sizes_of(photos):
    return {image_id: photo.size for image_id, photo in photos.items()}
