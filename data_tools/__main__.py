"""`python -m data_tools`, and with it `mpirun -n 8 python -m mpi4py -m data_tools preprocess ...`."""

from data_tools.cli import main

if __name__ == "__main__":
    main()
