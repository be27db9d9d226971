"""What a VAE does once it has learned, as models that draw no noise: reconstruct, encode, decode; and their export."""

import keras


class Inference:
    """Three models that share the layers of encoder and decoder.

    Attributes:
        reconstruct: From images to the mean of p(x | z) at `z_mean`.
        encode: From images to `[z_mean, z_log_var]`.
        decode: From z to the mean of p(x | z).
    """

    def __init__(self, encoder, decoder, likelihood):
        z_mean, z_log_var, _ = encoder.outputs
        parameters = decoder(alone_or_list([z_mean, *encoder.inputs[1:]]))
        self.reconstruct = keras.Model(alone_or_list(encoder.inputs), likelihood(parameters))
        self.encode = keras.Model(alone_or_list(encoder.inputs), [z_mean, z_log_var])
        self.decode = keras.Model(alone_or_list(decoder.inputs), likelihood(decoder.outputs[0]))

    def export(self, filepath, format, **kwargs):
        """Write a SavedModel with all three, `serve` the first of them; in other formats, the first."""
        if format != "tf_saved_model":
            self.reconstruct.export(filepath, format=format, **kwargs)
            return
        archive = keras.export.ExportArchive()
        for name, model in (("serve", self.reconstruct), ("encode", self.encode), ("decode", self.decode)):
            archive.track(model)
            specs = [keras.InputSpec(shape=tensor.shape, dtype=tensor.dtype) for tensor in model.inputs]
            archive.add_endpoint(name, _on_inputs_of(model), input_signature=specs)
        archive.write_out(filepath, **kwargs)


def alone_or_list(inputs):
    """Inputs as Keras wants them: one by itself, several in a list."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _on_inputs_of(model):
    def call(*inputs):
        return model(alone_or_list(inputs), training=False)

    return call
