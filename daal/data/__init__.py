"""From files to augmented batches: records, layouts of data sets, images, the plan."""
