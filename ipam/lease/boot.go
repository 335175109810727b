package lease

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootID names the present boot of the host.
func BootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("id of this boot: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// BootTime is the time since the host booted, sleep included. No clock that is set or jumps has a part in it.
func BootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("lease: " + err.Error()) // every kernel since 2.6.39 has that clock
	}
	return time.Duration(t.Nano())
}
