// Package loopback finds addresses for servers that tests start and reach by an address which they must know beforehand.
package loopback

import (
	"fmt"
	"os"
	"sync/atomic"
)

// ports are counted from here, in each process for itself.
const firstPort = 20000

var last atomic.Uint32

// Address returns host:port of an IPv4 address that is this process's alone, with another port each time. To listen on a port
// that the kernel chooses, close it, and give it to a server is a race: meanwhile the kernel may choose it for another
// process's connection, which come from 127.0.0.1.
func Address() string {
	pid := uint32(os.Getpid()) // less than 2^22, proc_sys_kernel(5)
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16&63, pid>>8&255, pid&255, firstPort+last.Add(1))
}
