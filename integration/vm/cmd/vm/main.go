// vm runs a command in the project's second kernel: vm [flags] -- COMMAND [ARGUMENT...].
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/integration/vm"
)

func main() { os.Exit(run()) }

// notRun is the exit code when the command's own is not known, as that of env and ssh.
const notRun = 125

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	code := 0
	if err := command(&code).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		return notRun
	}
	return code
}

func command(code *int) *cobra.Command {
	config := vm.Config{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	update := false
	cmd := &cobra.Command{
		Use:   "vm [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in the distribution's kernel (qemu, without KVM) on this machine's files",
		Long: `Run a command in the stock kernel of Debian or Ubuntu, whichever this machine's apt knows, in a virtual machine
without a network that boots in seconds. It sees this machine's files; what it writes stays in the guest's memory and ends with it, unless it is below a --writable
directory. /run is the guest's own. Environment, directory, standard files and exit code are passed through.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && !update {
				return errors.New("which command? usage: vm [flags] -- COMMAND [ARGUMENT...]")
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if update {
				release, err := vm.Update(cmd.Context(), os.Stderr)
				if err != nil || len(args) == 0 {
					fmt.Fprintln(os.Stderr, "kernel", release)
					return err
				}
			}
			*code, err = vm.Run(cmd.Context(), config, args...)
			return err
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.IntVar(&config.Memory, "memory", vm.DefaultMemory, "memory in MiB")
	flags.IntVar(&config.CPUs, "cpus", 0, "processors (default 1)")
	flags.DurationVar(&config.Timeout, "timeout", vm.DefaultTimeout, "kill the guest after this time")
	flags.StringSliceVar(&config.Modules, "module", nil, "load this kernel module beforehand (repeatable)")
	flags.StringSliceVar(&config.Without, "without", nil, "make the kernel refuse this module (repeatable)")
	flags.StringSliceVar(&config.Cmdline, "append", nil, "add this to the kernel's command line (repeatable)")
	flags.StringSliceVar(&config.Writable, "writable", nil, "what the command writes below this directory is written to the machine (repeatable)")
	flags.BoolVar(&update, "update", false, "fetch the kernel that the distribution ships now")
	return cmd
}
