"""`denet_torch.architecture` without PyTorch, which a conversion need not wait for."""

from training.options import light

table = light("architecture")
LAYERS, NAMES, ATTENTION, PORT_NAMES = table.LAYERS, table.NAMES, table.ATTENTION, table.PORT_NAMES
keras_name, transposed, shapes, checksum = table.keras_name, table.transposed, table.shapes, table.checksum
conv_steps, attention_steps = table.conv_steps, table.attention_steps
