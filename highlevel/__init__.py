"""The U-Net in tf.layers (tf.compat.v1.layers), trained by the tf.compat.v1.train optimizers."""
