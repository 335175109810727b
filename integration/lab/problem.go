package lab

import "fmt"

// Problem is an error made for the person at the terminal: what is wrong and where, and what to do next.
type Problem struct {
	What string
	Do   string
}

// Error is one line.
func (p *Problem) Error() string {
	if p.Do == "" {
		return p.What
	}
	return p.What + "; " + p.Do
}

// alsoFailed adds to an error that taking back what had been done failed too.
func alsoFailed(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w (and undoing it failed: %w)", err, undo)
}

func problem(what, do string) error { return &Problem{What: what, Do: do} }
