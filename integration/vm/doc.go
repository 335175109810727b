// Package vm is the project's second kernel: the distribution's stock one (Debian's or Ubuntu's) under qemu, for what the
// machine's own kernel lacks (ipip, for one) and for proof that a promise does not hang on one kernel. Run runs a program of
// this machine in it, Test the suite of a package; the command vm does the first from a shell.
//
// The guest sees this machine's files and changes them only in its own memory, except where Config.Writable says otherwise;
// /run is its own. It has no network. Modules load by themselves as on any machine. It is emulated (never KVM), so programs
// run five to twenty times slower than outside: a suite that is to run here waits for conditions, with generous limits.
//
// The kernel is fetched once with apt into the user's cache directory (400 MB) and stays the same until Update.
package vm
