"""What the product is measured against: the same mathematics, written plainly, on plain transformers models.

Each file has two kinds. ``published_...`` is built as the papers' official code is (its structure; nothing is copied);
``cached_...`` is the textbook algorithm with a cache and batches, but without any of the product's savings.
``tests/house/test_speed_references.py`` holds both to the product's losses, gradients and tokens.
"""
