import gzip


def truncate(path):
    """Puts a gzip file that was cut short in the place of a file."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes() * 99)[:-9])
    path.unlink()
