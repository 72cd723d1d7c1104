"""Contact sheets: what the top neurons of a layer see, drawn as one image per layer."""

from lightning_neurocorr.report.images import channel_colours as channel_colours
from lightning_neurocorr.report.images import false_colour as false_colour
from lightning_neurocorr.report.images import to_rgb as to_rgb
from lightning_neurocorr.show.sheets.images import enlarge as enlarge
from lightning_neurocorr.show.sheets.images import to_display as to_display
from lightning_neurocorr.show.sheets.sheet import contact_sheet as contact_sheet
from lightning_neurocorr.show.sheets.sheet import contact_sheets as contact_sheets
