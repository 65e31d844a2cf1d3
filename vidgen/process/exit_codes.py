"""What a process says with the number that it ends with: a contract with whatever started it."""

DONE = 0
ERROR = 1
USAGE = 2
REQUEUE = 75
HANG = 76
DATA = 77
STORAGE = 78
NUMBERS = 79
REFUSED = 80
REWIND = 81

MEANINGS = {
    DONE: "all steps are done and saved",
    ERROR: "an error in the code, or a machine that is gone: start again, and look at the message",
    USAGE: "the command line is wrong: starting again will not help",
    REQUEUE: "asked to stop, and stopped after a checkpoint: start again",
    HANG: "no progress within a limit: start again, and look at the stacks",
    DATA: "data cannot be read: look at bad_clips-*.jsonl",
    STORAGE: "a checkpoint could not be written, or none can be read: look at the storage",
    NUMBERS: "updates are not finite, spike, or differ when replayed: look at events.jsonl",
    REFUSED: "config, data or working folder refused: starting again will not help",
    REWIND: "the loss spiked, and the run goes back to before it: start again",
}
# The message of an error with one of these says it all; a trace of the code would not help.
TOLD = (DATA, STORAGE, NUMBERS, REFUSED, REWIND)
