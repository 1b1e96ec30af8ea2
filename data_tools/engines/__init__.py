"""Who does the work: processes of this machine, ranks of a launcher, or Spark. They hand out tasks and nothing else."""
