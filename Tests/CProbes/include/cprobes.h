// What a process in the daemon's sandbox must not be able to do, tried.
#pragma once

// Tries it: 0 if it worked, an errno if it was refused; -1 for a name that is not known. A process that is
// killed for it does not come back.
int try_forbidden(const char *name);

// Has the kernel answer as one without Landlock does, from now on. 0 or an errno.
int lack_landlock(void);
