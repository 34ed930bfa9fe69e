"""The U-Net in raw tf.nn operations, with explicit variables and the update written out."""
