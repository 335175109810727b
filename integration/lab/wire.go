package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The supervisor's control socket is a SOCK_SEQPACKET unix socket: one packet is one JSON message, and open files travel
// beside it. A connection carries one request; the client then reads replies until one is final, and may send signals.

// Verbs of the control socket.
const (
	verbStatus  = "status"
	verbExec    = "exec"
	verbSocket  = "socket"
	verbPodAdd  = "pod-add"
	verbPodDel  = "pod-del"
	verbPodCNI  = "pod-cni"
	verbKill    = "kill"
	verbStart   = "start"
	verbFabric  = "fabric"
	verbCheck   = "source-dest-check"
	verbBackend = "backend"
	verbDetach  = "detach" // on the launch connection only: the lab no longer ends with its launcher
)

// request is the first message of a connection; the fields that its verb does not use are empty.
type request struct {
	Verb    string   `json:"verb"`
	Where   string   `json:"where,omitempty"`   // node, pod, router or fabric
	Process string   `json:"process,omitempty"` // kill, start
	Call    string   `json:"call,omitempty"`    // pod-cni: check, status or gc
	Signal  int      `json:"signal,omitempty"`  // kill: 0 is SIGKILL and stay down
	Pod     *Pod     `json:"pod,omitempty"`     // pod-add
	Nodes   []string `json:"nodes,omitempty"`   // source-dest-check: none is all
	On      bool     `json:"on,omitempty"`      // source-dest-check
	Backend Backend  `json:"backend,omitempty"` // backend
	Args    []string `json:"args,omitempty"`    // exec
	Env     []string `json:"env,omitempty"`     // exec: added to the lab's
	TTY     bool     `json:"tty,omitempty"`     // exec: file 0 is a terminal to control
	Socket  [3]int   `json:"socket,omitempty"`  // socket: domain, type, protocol
}

// reply is what the supervisor sends. Progress replies come before the final one.
type reply struct {
	Progress *Progress       `json:"progress,omitempty"`
	Final    bool            `json:"final,omitempty"`
	Error    *Problem        `json:"error,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// interrupt is what a client may send while a program runs for it.
type interrupt struct {
	Signal int `json:"signal"`
}

// maxMessage bounds a packet. The kernel's default send buffer is about this long.
const maxMessage = 200 << 10

// maxFiles is how many open files travel beside a message.
const maxFiles = 3

type wire struct {
	c  *net.UnixConn
	mu sync.Mutex // one writer at a time
}

func (w *wire) send(message any, files ...*os.File) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("a control message of %d bytes is too long", len(data))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			if fds[i], err = rawFD(f); err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _, err = w.c.WriteMsgUnix(data, rights, nil)
	return err
}

// receive reads one message and the files beside it, which the caller closes. At the end of the stream it returns io.EOF.
func (w *wire) receive(message any) ([]*os.File, error) {
	data := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, rn, flags, _, err := w.c.ReadMsgUnix(data, rights)
	if err != nil {
		return nil, err
	}
	files, err := receivedFiles(rights[:rn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a control message was cut")
	}
	if err == nil {
		err = json.Unmarshal(data[:n], message)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func receivedFiles(rights []byte) ([]*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// rawFD is the file's number, without the side effect of File.Fd on its mode.
func rawFD(f *os.File) (int, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := -1
	err = c.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// final makes the last reply out of a result or an error.
func final(result any, err error) reply {
	if err != nil {
		var p *Problem
		if !errors.As(err, &p) || p.Error() != err.Error() { // keep what was wrapped around it
			p = &Problem{What: err.Error()}
		}
		return reply{Final: true, Error: p}
	}
	data, err := json.Marshal(result)
	if err != nil {
		return reply{Final: true, Error: &Problem{What: err.Error()}}
	}
	return reply{Final: true, Result: data}
}

// close ends the connection; whoever waits at the other end sees it.
func (w *wire) close() { _ = w.c.Close() }

// wireOf makes a wire of a connected unix socket, and takes the file over.
func wireOf(f *os.File) (*wire, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	return &wire{c: uc}, nil
}
