// Package lab builds clusters of network namespaces on one Linux machine, running Muslin's real binaries.
//
// A lab is one tree of processes in namespaces of its own: process, mount and network, and without root a user namespace
// too. Inside, a supervisor keeps a network and mount namespace for each node, the bridges and the router between them,
// the nodes' processes, and the pods, which the real CNI plugin wires. Nothing of a lab is in the machine's own network
// or mounts, so the end of the lab's first process, however it comes, takes everything with it.
//
// Up, Open and Down are the way in; a Lab is used through the supervisor's control socket. Sockets are made by the
// supervisor inside a node or pod and used from the caller's process (Dial, Listen, Capture), so tests can speak from
// any node without entering it. Programs run inside with Exec.
//
// The package owns what is around Muslin, never what Muslin does: it writes no route, no rule and no pod address.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Lab is a lab that is up. Its methods may be used from many goroutines.
type Lab struct {
	name   string
	dir    string
	launch *wire           // to the supervisor, if this process launched the lab and is attached to it
	ended  <-chan struct{} // the first process has ended; nil if this process did not launch it
}

// Open returns a lab that is up, or an error that says it is not. An empty stateDir is the default one.
func Open(name, stateDir string) (*Lab, error) {
	o := Options{Name: name, StateDir: stateDir}
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.StateDir); err != nil {
		return nil, problem(fmt.Sprintf("there is no lab %s (nothing in %s)", o.Name, o.StateDir), "start one with: lab up --name "+o.Name+" -f FILE")
	}
	l := &Lab{name: o.Name, dir: o.StateDir}
	c, err := l.dial()
	if err != nil {
		return nil, err
	}
	c.close()
	return l, nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.name }

// StateDir is where its files lie; logs are in nodes/<node>/var-log-calico/<process>.log.
func (l *Lab) StateDir() string { return l.dir }

// FirstProcess is the process, as this machine numbers it, that the lab ends with.
func (l *Lab) FirstProcess() (int, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(l.dir, recordFile))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r.PID, err
}

// LogPath is the file with the output of a node's process.
func (l *Lab) LogPath(node, process string) string { return logPath(l.dir, node, process) }

// Down removes the lab and returns when nothing of it is left.
func (l *Lab) Down(ctx context.Context) error {
	err := Down(ctx, l.name, l.dir)
	if l.launch != nil {
		l.launch.close()
	}
	if l.ended != nil {
		<-l.ended
	}
	return err
}

// Detach lets an attached lab live on after this process.
func (l *Lab) Detach() error {
	if l.launch == nil {
		return nil
	}
	return l.launch.send(request{Verb: verbDetach})
}

// Status returns a snapshot of nodes, processes and pods.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	var st Status
	_, err := l.call(ctx, request{Verb: verbStatus}, &st)
	return st, err
}

// PodAdd makes a pod and has the CNI plugin wire it. On failure nothing of the pod is left.
func (l *Lab) PodAdd(ctx context.Context, p Pod) (PodStatus, error) {
	var st PodStatus
	_, err := l.call(ctx, request{Verb: verbPodAdd, Pod: &p}, &st)
	return st, err
}

// PodDel has the CNI plugin release a pod, and removes it.
func (l *Lab) PodDel(ctx context.Context, id string) error {
	_, err := l.podDel(ctx, id)
	return err
}

// podDel is PodDel that tells how long CNI DEL took.
func (l *Lab) podDel(ctx context.Context, id string) (PodStatus, error) {
	var st PodStatus
	_, err := l.call(ctx, request{Verb: verbPodDel, Where: id}, &st)
	return st, err
}

// PodCheck has the CNI plugins check a pod.
func (l *Lab) PodCheck(ctx context.Context, id string) error { return l.podCNI(ctx, id, cniCheck) }

// CNIStatus asks the CNI plugins of a pod's node whether they could wire a pod now.
func (l *Lab) CNIStatus(ctx context.Context, id string) error { return l.podCNI(ctx, id, cniStatus) }

// CNICollect has the CNI plugins of a pod's node remove all that is of no pod, as if that one were none; the lab still has it.
func (l *Lab) CNICollect(ctx context.Context, id string) error { return l.podCNI(ctx, id, cniCollect) }

func (l *Lab) podCNI(ctx context.Context, id, call string) error {
	_, err := l.call(ctx, request{Verb: verbPodCNI, Where: id, Call: call}, nil)
	return err
}

// Kill kills a node's process with SIGKILL; it stays down until Start.
func (l *Lab) Kill(ctx context.Context, node, process string) error {
	_, err := l.call(ctx, request{Verb: verbKill, Where: node, Process: process}, nil)
	return err
}

// Signal sends a signal to a node's process. If it ends by it, it is started again.
func (l *Lab) Signal(ctx context.Context, node, process string, sig syscall.Signal) error {
	_, err := l.call(ctx, request{Verb: verbKill, Where: node, Process: process, Signal: int(sig)}, nil)
	return err
}

// Start starts a node's process that is down, and returns when it runs (or, for one that runs once, has done its work).
func (l *Lab) Start(ctx context.Context, node, process string) error {
	_, err := l.call(ctx, request{Verb: verbStart, Where: node, Process: process}, nil)
	return err
}

// Dial opens a TCP connection from a node or pod.
func (l *Lab) Dial(ctx context.Context, from string, to netip.AddrPort) (*net.TCPConn, error) {
	f, err := l.socket(ctx, from, familyOf(to.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return connectSocket(f, to, deadline)
}

// Listen opens a TCP listener on a node or pod. Port 0 takes a free one; an unspecified address takes all.
func (l *Lab) Listen(ctx context.Context, where string, at netip.AddrPort) (*net.TCPListener, error) {
	f, err := l.socket(ctx, where, familyOf(at.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	return listenSocket(f, at)
}

// DialUDP opens a UDP socket on a node or pod, with an address of its own, that speaks with one peer. Another answers who is
// told to in the same way.
func (l *Lab) DialUDP(ctx context.Context, where string, own, peer netip.AddrPort) (*net.UDPConn, error) {
	f, err := l.socket(ctx, where, familyOf(peer.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	return pairSocket(f, own, peer)
}

// DialIP opens a raw socket on a node, a pod or the router, whose writes are the payloads of IPv4 packets of a protocol to one
// address.
func (l *Lab) DialIP(ctx context.Context, where string, protocol int, to netip.Addr) (*net.IPConn, error) {
	f, err := l.socket(ctx, where, unix.AF_INET, unix.SOCK_RAW, protocol)
	if err != nil {
		return nil, err
	}
	return rawSocket(f, to)
}

// socket makes a non-blocking socket inside a node or pod.
func (l *Lab) socket(ctx context.Context, where string, domain, kind, protocol int) (*os.File, error) {
	files, err := l.call(ctx, request{Verb: verbSocket, Where: where, Socket: [3]int{domain, kind, protocol}}, nil)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		closeAll(files)
		return nil, errors.New("the supervisor sent no socket")
	}
	return files[0], nil
}

func (l *Lab) dial() (*wire, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: controlSocket(l.dir), Net: "unixpacket"})
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, problem(fmt.Sprintf("lab %s belongs to another user", l.name), "ask as that user, or as root")
		}
		return nil, problem(fmt.Sprintf("lab %s is not up (its supervisor does not answer in %s)", l.name, l.dir),
			"wait if it is being started; otherwise lab down --name "+l.name+" removes what is left of it")
	}
	return &wire{c: c}, nil
}

// call makes one request and returns the files that came with the answer.
func (l *Lab) call(ctx context.Context, r request, result any) ([]*os.File, error) {
	w, err := l.dial()
	if err != nil {
		return nil, err
	}
	defer w.close()
	if err := w.send(r); err != nil {
		return nil, err
	}
	return w.await(ctx, result)
}

// await reads the final reply; when ctx ends it gives up, and the supervisor does too.
func (w *wire) await(ctx context.Context, result any) ([]*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var r reply
	files, err := w.receive(&r)
	switch {
	case ctx.Err() != nil:
		closeAll(files)
		return nil, ctx.Err()
	case errors.Is(err, io.EOF):
		return nil, problem("the lab went down meanwhile", "")
	case err != nil:
		return nil, err
	case r.Error != nil:
		closeAll(files)
		return nil, r.Error
	case result != nil:
		if err := json.Unmarshal(r.Result, result); err != nil {
			closeAll(files)
			return nil, err
		}
	}
	return files, nil
}
