"""dvm_rt: a real-time compiler and multi-process runtime for models whose shapes and control flow change while they run."""
