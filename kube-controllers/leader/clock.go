package leader

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot is the time since the machine was started, which goes on while it sleeps and which nobody can set.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("leader: no boot time: " + err.Error()) // every kernel since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}
